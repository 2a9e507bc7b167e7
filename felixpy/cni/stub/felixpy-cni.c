/* felixpy-cni: what a container runtime starts. It hands the call to the agent of this node and prints its answer.
 *
 *   runtime ── environment, standard input ──► felixpy-cni ── unix socket, open namespace ──► agent
 *
 * It decides nothing while the agent is there. Without it: VERSION is answered, DEL takes away the container's
 * interfaces (known by their alias, so never those of a newer container of the same pod) and succeeds, STATUS says 50,
 * everything else waits for the agent and then asks the runtime to try again (code 11). It must never print anything but
 * one JSON object, never answer ADD with success by itself, and needs no library and no other file.
 *
 * Request: "FPYCNI1\n", two 32-bit lengths in the host's order, the CNI_ variables each with a zero behind it, standard
 * input; beside the first byte the open network namespace (SCM_RIGHTS). Answer: "<exit code> <length>\n" and as many bytes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/felixpy/cni.sock"
#define MAX_INPUT (4u << 20)
#define MAX_ENVIRONMENT (64u << 10)
#define WAIT_SECONDS 60          /* for an agent that is away, unless "agentWaitSeconds" says otherwise */
#define ANSWER_SECONDS 120       /* for an agent that has taken the call */
#define DELETE_ANSWER_SECONDS 20 /* DEL has another way out */
#define RETRY_MILLISECONDS 50

enum { BAD_ENVIRONMENT = 4, IO_FAILURE = 5, TRY_AGAIN = 11, NOT_AVAILABLE = 50 };

extern char **environ;

static char input[MAX_INPUT + 1];
static size_t input_length;
static char environment[MAX_ENVIRONMENT];
static size_t environment_length;
static char version[32] = "1.0.0";

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void put_escaped(const char *text) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20 || c >= 0x7f)
            printf("\\u%04x", c); /* bytes of UTF-8 one by one: unreadable, but valid */
        else
            putchar(c);
    }
}

static int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Print an error object. Returns the exit code. */
static int fail(int code, const char *format, ...) {
    char message[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"", version, code);
    put_escaped(message);
    printf("\"}\n");
    return fflush(stdout) ? 2 : 1;
}

/* --- the few fields of the configuration that are needed without the agent ----------------------------------------- */

static const char *after_string(const char *at) { /* at: behind the opening quote */
    while (*at && *at != '"')
        at += at[0] == '\\' && at[1] ? 2 : 1;
    return *at ? at + 1 : NULL;
}

static const char *skip_space(const char *at) {
    while (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')
        at++;
    return at;
}

/* Copy the text or number that stands at NAME in the outermost object. 0 if there is none that is plain and fits. */
static int field(const char *name, char *into, size_t room) {
    int depth = 0;
    for (const char *at = input; *at;) {
        if (*at == '{' || *at == '[')
            depth++;
        if (*at == '}' || *at == ']')
            depth--;
        if (*at != '"') {
            at++;
            continue;
        }
        const char *text = at + 1;
        const char *behind = after_string(text);
        if (!behind)
            return 0;
        const char *colon = skip_space(behind);
        at = behind;
        if (*colon != ':')
            continue;
        at = skip_space(colon + 1);
        size_t length = (size_t)(behind - 1 - text);
        if (depth != 1 || length != strlen(name) || memcmp(text, name, length))
            continue;
        const char *end = at;
        if (*at == '"') {
            at++;
            end = after_string(at);
            if (!end)
                return 0;
            end--;
        } else {
            end += strspn(at, "0123456789.");
        }
        length = (size_t)(end - at);
        if (!length || length >= room || memchr(at, '\\', length))
            return 0;
        memcpy(into, at, length);
        into[length] = 0;
        return 1;
    }
    return 0;
}

static void read_version(void) {
    char found[sizeof version];
    if (field("cniVersion", found, sizeof found) && found[strspn(found, "0123456789.")] == 0)
        memcpy(version, found, sizeof version);
}

/* --- input --------------------------------------------------------------------------------------------------------- */

static int read_input(void) {
    while (input_length < MAX_INPUT) {
        ssize_t got = read(0, input + input_length, MAX_INPUT - input_length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail(IO_FAILURE, "standard input cannot be read: %s", strerror(errno));
        if (got == 0)
            return 0;
        input_length += (size_t)got;
    }
    return fail(IO_FAILURE, "the network configuration is longer than %u bytes", MAX_INPUT);
}

static int read_environment(void) {
    for (char **variable = environ; *variable; variable++) {
        size_t size = strlen(*variable) + 1;
        if (strncmp(*variable, "CNI_", 4))
            continue;
        if (environment_length + size > MAX_ENVIRONMENT)
            return fail(BAD_ENVIRONMENT, "the CNI_ variables are longer than %u bytes", MAX_ENVIRONMENT);
        memcpy(environment + environment_length, *variable, size);
        environment_length += size;
    }
    return 0;
}

/* --- the agent ----------------------------------------------------------------------------------------------------- */

static int send_all(int to, const char *data, size_t length) {
    while (length) {
        ssize_t sent = send(to, data, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return -1;
        data += sent;
        length -= (size_t)sent;
    }
    return 0;
}

static int send_request(int to, int namespace) {
    struct {
        char magic[8];
        uint32_t environment, input;
    } header = {"FPYCNI1\n", (uint32_t)environment_length, (uint32_t)input_length};
    _Static_assert(sizeof header == 16, "no padding");
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {&header, sizeof header};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (namespace >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(rights), &namespace, sizeof(int));
    }
    if (sendmsg(to, &message, MSG_NOSIGNAL) != sizeof header)
        return -1;
    return send_all(to, environment, environment_length) || send_all(to, input, input_length) ? -1 : 0;
}

/* A whole answer, or NULL: the agent went away, or the time is over. *LENGTH excludes the first line. */
static char *receive_answer(int from, double until, int *code, size_t *length) {
    size_t room = 65536, got = 0;
    char *answer = malloc(room + 1);
    while (answer) {
        struct pollfd readable = {from, POLLIN, 0};
        double left = until - now();
        if (left <= 0 || poll(&readable, 1, (int)(left * 1000) + 1) <= 0)
            break;
        if (got == room) {
            char *larger = realloc(answer, room * 2 + 1);
            if (!larger)
                break;
            answer = larger;
            room *= 2;
        }
        ssize_t more = recv(from, answer + got, room - got, 0);
        if (more < 0 && errno == EINTR)
            continue;
        if (more <= 0)
            break;
        got += (size_t)more;
        answer[got] = 0;
        int line = 0;
        unsigned long size;
        if (sscanf(answer, "%d %lu\n%n", code, &size, &line) < 2 || !memchr(answer, '\n', got))
            continue;
        line = (int)(strchr(answer, '\n') - answer) + 1;
        if (got < (size_t)line + size)
            continue;
        memmove(answer, answer + line, size);
        *length = size;
        return answer;
    }
    free(answer);
    return NULL;
}

static int connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (agent < 0)
        return -1;
    struct timeval patience = {5, 0};
    setsockopt(agent, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(agent, (struct sockaddr *)&address, sizeof address)) {
        int reason = errno;
        close(agent);
        errno = reason;
        return -1;
    }
    return agent;
}

/* Ask once. 0: answered, with *CODE as exit code. -1: no agent, or it went away before its answer; errno says why. */
static int ask(const char *path, int namespace, double patience, int *code) {
    int agent = connect_to(path);
    if (agent < 0)
        return -1;
    char *answer = NULL;
    size_t length = 0;
    if (!send_request(agent, namespace))
        answer = receive_answer(agent, now() + patience, code, &length);
    close(agent);
    if (!answer) {
        errno = EPIPE;
        return -1;
    }
    fwrite(answer, 1, length, stdout);
    free(answer);
    if (fflush(stdout))
        *code = 2;
    return 0;
}

/* --- DEL without the agent: the links of this container, by their alias ------------------------------------------------ */

static int talk(int kernel, struct nlmsghdr *request) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    return sendto(kernel, request, request->nlmsg_len, 0, (struct sockaddr *)&address, sizeof address) < 0 ? -1 : 0;
}

static void delete_link(int kernel, int index) {
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
    } request = {
        .header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_DELLINK, .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = 2},
        .link = {.ifi_index = index},
    };
    talk(kernel, &request.header);
}

static int has_alias(const struct nlmsghdr *message, const char *alias) {
    const struct ifinfomsg *link = NLMSG_DATA(message);
    int length = (int)IFLA_PAYLOAD(message);
    for (struct rtattr *one = IFLA_RTA(link); RTA_OK(one, length); one = RTA_NEXT(one, length))
        if ((one->rta_type & NLA_TYPE_MASK) == IFLA_IFALIAS) {
            size_t size = strnlen(RTA_DATA(one), RTA_PAYLOAD(one));
            return size == strlen(alias) && !memcmp(RTA_DATA(one), alias, size);
        }
    return 0;
}

static void delete_links(const char *container, const char *interface) {
    static char buffer[1 << 16] __attribute__((aligned(8)));
    char alias[256];
    int found[16], count = 0, done = 0;
    if (snprintf(alias, sizeof alias, "felixpy:%s/%s", container, interface) >= (int)sizeof alias)
        return;
    int kernel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (kernel < 0)
        return;
    struct timeval patience = {5, 0};
    setsockopt(kernel, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
    } request = {
        .header = {.nlmsg_len = sizeof request,
                   .nlmsg_type = RTM_GETLINK,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
                   .nlmsg_seq = 1},
    };
    done = talk(kernel, &request.header);
    while (!done) {
        ssize_t got = recv(kernel, buffer, sizeof buffer, 0);
        if (got <= 0)
            break;
        int length = (int)got;
        for (struct nlmsghdr *one = (struct nlmsghdr *)buffer; NLMSG_OK(one, length); one = NLMSG_NEXT(one, length)) {
            if (one->nlmsg_type == NLMSG_DONE || one->nlmsg_type == NLMSG_ERROR)
                done = 1;
            else if (one->nlmsg_type == RTM_NEWLINK && count < 16 && has_alias(one, alias))
                found[count++] = ((struct ifinfomsg *)NLMSG_DATA(one))->ifi_index;
        }
    }
    for (int one = 0; one < count; one++)
        delete_link(kernel, found[one]);
    close(kernel);
}

/* ----------------------------------------------------------------------------------------------------------------------- */

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

int main(void) {
    char path[108] = DEFAULT_SOCKET, number[16];
    const char *command = variable("CNI_COMMAND"), *namespace_path = variable("CNI_NETNS");
    double wait = WAIT_SECONDS;
    int namespace = -1, code = 2;
    signal(SIGPIPE, SIG_IGN);
    if (!*command)
        return fail(BAD_ENVIRONMENT, "CNI_COMMAND is missing: container runtimes start this program, people do not");
    if (read_input() || read_environment())
        return 1;
    read_version();
    if (!strcmp(command, "VERSION")) {
        printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n", version);
        return fflush(stdout) ? 2 : 0;
    }
    field("socket", path, sizeof path);
    if (field("agentWaitSeconds", number, sizeof number))
        wait = atof(number);
    int is_del = !strcmp(command, "DEL"), needs = !strcmp(command, "ADD") || !strcmp(command, "CHECK");
    if (*namespace_path)
        namespace = open(namespace_path, O_RDONLY | O_CLOEXEC);
    if (needs && namespace < 0)
        return fail(BAD_ENVIRONMENT, "the network namespace CNI_NETNS='%s' cannot be opened: %s", namespace_path,
                    *namespace_path ? strerror(errno) : "it is empty");
    double until = now() + wait;
    while (ask(path, namespace, is_del ? DELETE_ANSWER_SECONDS : ANSWER_SECONDS, &code)) {
        int reason = errno;
        if (is_del) {
            delete_links(variable("CNI_CONTAINERID"), variable("CNI_IFNAME"));
            return 0;
        }
        if (!strcmp(command, "STATUS"))
            return fail(NOT_AVAILABLE, "no felixpy agent answers at %s: %s", path, strerror(reason));
        if (!needs || now() >= until)
            return fail(TRY_AGAIN, "no felixpy agent answers at %s: %s; is it running on this node, with this CNISocket?",
                        path, strerror(reason));
        poll(NULL, 0, RETRY_MILLISECONDS);
    }
    return code;
}
