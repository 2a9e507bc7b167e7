# felixpy for a DaemonSet or a container beside the host's own network:
#   docker build -t felixpy .
#   docker run --network host --privileged -v /run/xtables.lock:/run/xtables.lock \
#     -e NODENAME=node1 -e FELIX_MQTTHOST=broker.example felixpy
# Privileged for a writable /proc/sys: the settings of workload interfaces stand there.

FROM debian:12-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY felixpy felixpy
# python-iptables comes as source: that is what the compiler is for.
RUN python3 -m venv /opt/felixpy && /opt/felixpy/bin/pip install --no-cache-dir .

FROM debian:12-slim
# iptables: the back-ends' programs and the libraries of python-iptables. nft and ipset: for people who look;
# felixpy itself speaks netlink to both. kmod: legacy iptables loads its modules.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 iptables nftables ipset iproute2 kmod ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/felixpy /opt/felixpy
ENV PATH=/opt/felixpy/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1
ENTRYPOINT ["felixpy"]
CMD ["run"]
