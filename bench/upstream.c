/* A mock Messages API that costs almost nothing, so that a benchmark measures the gateway before it.
 *
 *     upstream PORT
 *
 * One thread, epoll, HTTP/1.1 with keep-alive, no TLS. It answers POST .../messages with 1 KB of JSON, or with a
 * stream when the body says "stream":true, and POST .../count_tokens. A stream sends "rate=N" text deltas a second,
 * N as written anywhere in the request body, each with the monotonic time of its sending as @nanoseconds@, so that
 * the load generator knows how late it is. It ends after "events=N" deltas, or when SIGUSR1 ends all open streams:
 * a measurement decides when streams end, and every one of them ends as a real one does, with usage and message_stop.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 65536, REQUEST_BYTES = 512 * 1024, EVENT_BYTES = 1024, OUT_BYTES = 8192 };
#define NANOS 1000000000LL

struct connection {
    bool open, streaming, want_out;
    char *in;                  /* the request so far; freed between requests */
    size_t in_len, in_size;
    char out[OUT_BYTES];       /* what the kernel would not take yet */
    size_t out_len;
    int64_t due, period;       /* of the next delta */
    long sent, limit, generation;
    int heap_index;
};

static struct connection *connections[MAX_FDS];
static int heap[MAX_FDS], heap_len; /* streaming fds, the earliest delta first */
static int epoll_fd;
static volatile sig_atomic_t generation; /* streams of an older generation end at their next delta */
static unsigned long answers;

static const char PAD[] =
    "The quick brown fox jumps over the lazy dog while the fare box counts every coin that falls into it. ";

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NANOS + t.tv_nsec;
}

/* ---- the heap of streams by due time ---- */

static int64_t due_at(int i) { return connections[heap[i]]->due; }

static void heap_swap(int a, int b) {
    int fd = heap[a];
    heap[a] = heap[b];
    heap[b] = fd;
    connections[heap[a]]->heap_index = a;
    connections[heap[b]]->heap_index = b;
}

static void heap_settle(int i) {
    while (i > 0 && due_at(i) < due_at((i - 1) / 2)) {
        heap_swap(i, (i - 1) / 2);
        i = (i - 1) / 2;
    }
    for (;;) {
        int child = 2 * i + 1;
        if (child + 1 < heap_len && due_at(child + 1) < due_at(child)) child++;
        if (child >= heap_len || due_at(i) <= due_at(child)) return;
        heap_swap(i, child);
        i = child;
    }
}

static void heap_add(int fd) {
    heap[heap_len] = fd;
    connections[fd]->heap_index = heap_len++;
    heap_settle(heap_len - 1);
}

static void heap_remove(int fd) {
    int i = connections[fd]->heap_index;
    heap_swap(i, heap_len - 1);
    heap_len--;
    if (i < heap_len) heap_settle(i);
}

/* ---- connections ---- */

static void hang_up(int fd) {
    struct connection *c = connections[fd];
    if (c->streaming) heap_remove(fd);
    free(c->in);
    memset(c, 0, sizeof *c);
    close(fd);
}

static void watch(int fd, bool want_out) {
    struct connection *c = connections[fd];
    if (c->want_out == want_out) return;
    c->want_out = want_out;
    struct epoll_event e = {.events = EPOLLIN | (want_out ? EPOLLOUT : 0), .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &e);
}

/* Sends what it can and keeps the rest; a connection that cannot keep the rest is beyond use. */
static void put(int fd, const char *bytes, size_t len) {
    struct connection *c = connections[fd];
    ssize_t n = c->out_len ? 0 : write(fd, bytes, len);
    if (n < 0) n = 0; /* an error that is not EAGAIN shows itself at the next read */
    size_t rest = len - (size_t)n;
    if (!rest) return;
    if (c->out_len + rest > OUT_BYTES) {
        hang_up(fd);
        return;
    }
    memcpy(c->out + c->out_len, bytes + n, rest);
    c->out_len += rest;
    watch(fd, true);
}

static void flush_out(int fd) {
    struct connection *c = connections[fd];
    ssize_t n = write(fd, c->out, c->out_len);
    if (n <= 0) return;
    c->out_len -= (size_t)n;
    memmove(c->out, c->out + n, c->out_len);
    if (!c->out_len) watch(fd, false);
}

/* ---- answers ---- */

#define USAGE_HEAD "\"usage\":{\"input_tokens\":250,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0," \
    "\"cache_creation\":{\"ephemeral_5m_input_tokens\":0,\"ephemeral_1h_input_tokens\":0},\"output_tokens\":"
#define USAGE_TAIL ",\"service_tier\":\"standard\",\"inference_geo\":\"not_available\"}"

static void put_json(int fd, const char *body, int len) {
    char head[256], whole[4096];
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nrequest-id: req_bench%012lx\r\n"
                     "content-length: %d\r\n\r\n", answers, len);
    memcpy(whole, head, (size_t)n);
    memcpy(whole + n, body, (size_t)len);
    put(fd, whole, (size_t)(n + len));
}

static void put_message(int fd) {
    char body[2048];
    int n = snprintf(body, sizeof body,
                     "{\"model\":\"claude-sonnet-4-6\",\"id\":\"msg_bench%012lx\",\"type\":\"message\","
                     "\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"%s%s%s%s%s\"}],"
                     "\"stop_reason\":\"end_turn\",\"stop_sequence\":null," USAGE_HEAD "150" USAGE_TAIL "}",
                     answers, PAD, PAD, PAD, PAD, PAD);
    put_json(fd, body, n);
}

/* Writes one SSE event as one HTTP chunk into `out`; returns its length. */
static int chunk(char *out, const char *name, const char *data) {
    char event[EVENT_BYTES];
    int n = snprintf(event, sizeof event, "event: %s\ndata: %s\n\n", name, data);
    return sprintf(out, "%x\r\n%s\r\n", n, event);
}

static void start_stream(int fd, long rate, long limit) {
    struct connection *c = connections[fd];
    char out[4 * EVENT_BYTES], data[EVENT_BYTES];
    int n = sprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                         "cache-control: no-cache\r\nrequest-id: req_bench%012lx\r\n"
                         "transfer-encoding: chunked\r\n\r\n", answers);
    sprintf(data, "{\"type\":\"message_start\",\"message\":{\"model\":\"claude-sonnet-4-6\",\"id\":\"msg_bench%012lx\","
                  "\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"stop_reason\":null,"
                  "\"stop_sequence\":null," USAGE_HEAD "1" USAGE_TAIL "}}", answers);
    n += chunk(out + n, "message_start", data);
    n += chunk(out + n, "content_block_start",
               "{\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}");
    n += chunk(out + n, "ping", "{\"type\": \"ping\"}");
    put(fd, out, (size_t)n);
    if (!c->open) return;
    c->streaming = true;
    c->period = NANOS / rate;
    c->due = now_ns() + c->period;
    c->sent = 0;
    c->limit = limit;
    c->generation = generation;
    heap_add(fd);
}

static void end_stream(int fd) {
    struct connection *c = connections[fd];
    char out[4 * EVENT_BYTES], data[EVENT_BYTES];
    int n = chunk(out, "content_block_stop", "{\"type\":\"content_block_stop\",\"index\":0}");
    sprintf(data, "{\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},"
                  "\"usage\":{\"input_tokens\":250,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,"
                  "\"output_tokens\":%ld}}", c->sent + 1);
    n += chunk(out + n, "message_delta", data);
    n += chunk(out + n, "message_stop", "{\"type\":\"message_stop\"}");
    n += sprintf(out + n, "0\r\n\r\n");
    heap_remove(fd);
    c->streaming = false;
    put(fd, out, (size_t)n);
}

static void send_delta(int fd, int64_t now) {
    struct connection *c = connections[fd];
    c->due += c->period;
    if (c->due < now) c->due = now + c->period; /* late: keep the rate, do not catch up in a burst */
    heap_settle(c->heap_index);
    if (c->out_len) return; /* the gateway does not read: the stream waits */
    if (c->generation != generation || c->sent >= c->limit) {
        end_stream(fd);
        return;
    }
    char out[EVENT_BYTES + 16], data[EVENT_BYTES];
    sprintf(data, "{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\","
                  "\"text\":\"@%lld@ is when\"}}", (long long)now_ns());
    int n = chunk(out, "content_block_delta", data);
    c->sent++;
    put(fd, out, (size_t)n);
}

/* ---- requests ---- */

/* The request's full length, or 0 while it is incomplete. Chunked bodies end at the first "0\r\n\r\n". */
static size_t request_length(const char *in, size_t len) {
    const char *head_end = memmem(in, len, "\r\n\r\n", 4);
    if (!head_end) return 0;
    size_t head = (size_t)(head_end - in) + 4;
    for (const char *line = in; line < head_end; line = (const char *)memchr(line, '\n', head) + 1) {
        if (!strncasecmp(line, "content-length:", 15)) {
            size_t whole = head + strtoul(line + 15, NULL, 10);
            return whole <= len ? whole : 0;
        }
        if (!strncasecmp(line, "transfer-encoding:", 18)) {
            const char *last = memmem(in + head, len - head, "0\r\n\r\n", 5);
            return last ? (size_t)(last - in) + 5 : 0;
        }
    }
    return head;
}

static long number_after(const char *in, size_t len, const char *name, long otherwise) {
    const char *at = memmem(in, len, name, strlen(name));
    return at ? strtol(at + strlen(name), NULL, 10) : otherwise;
}

static void answer(int fd, size_t len) {
    const char *in = connections[fd]->in;
    size_t line = (size_t)((const char *)memchr(in, '\r', len) - in);
    answers++;
    if (memmem(in, line, "count_tokens", 12)) {
        put_json(fd, "{\"input_tokens\":250}", (int)strlen("{\"input_tokens\":250}"));
    } else if (memmem(in, len, "\"stream\":true", 13) || memmem(in, len, "\"stream\": true", 14)) {
        start_stream(fd, number_after(in, len, "rate=", 25), number_after(in, len, "events=", 1000000));
    } else {
        put_message(fd);
    }
}

static void readable(int fd) {
    struct connection *c = connections[fd];
    if (!c->in) c->in = malloc(c->in_size = 8192);
    if (c->in_len + 1 >= c->in_size && c->in_size < REQUEST_BYTES) c->in = realloc(c->in, c->in_size *= 2);
    ssize_t n = read(fd, c->in + c->in_len, c->in_size - c->in_len - 1);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        hang_up(fd);
        return;
    }
    c->in[c->in_len += (size_t)n] = 0;
    size_t len;
    while (c->open && !c->streaming && (len = request_length(c->in, c->in_len))) {
        answer(fd, len);
        if (!c->open) return;
        memmove(c->in, c->in + len, c->in_len - len + 1);
        c->in_len -= len;
    }
    if (!c->in_len) {
        free(c->in);
        c->in = NULL;
    }
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (!connections[fd]) connections[fd] = calloc(1, sizeof(struct connection));
        connections[fd]->open = true;
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static void next_generation(int signal_number) {
    (void)signal_number;
    generation++;
}

static int listen_on(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) {
        perror("upstream: listen");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    struct rlimit files = {MAX_FDS, MAX_FDS};
    if (setrlimit(RLIMIT_NOFILE, &files)) {
        getrlimit(RLIMIT_NOFILE, &files);
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, next_generation);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(atoi(argv[1]));
    struct epoll_event events[512], e = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int64_t wait = heap_len ? due_at(0) - now_ns() : NANOS;
        struct timespec limit = {wait > 0 ? wait / NANOS : 0, wait > 0 ? wait % NANOS : 0};
        int n = epoll_pwait2(epoll_fd, events, 512, &limit, NULL);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_all(listener);
                continue;
            }
            if (events[i].events & EPOLLOUT) flush_out(fd);
            if (connections[fd]->open && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(fd);
        }
        int64_t now = now_ns();
        while (heap_len && due_at(0) <= now) send_delta(heap[0], now);
    }
}
