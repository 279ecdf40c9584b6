/* The load generator: sends one request again and again to 127.0.0.1 and measures what comes back.
 *
 *     load closed  PORT REQUEST CONNECTIONS WARM_S WINDOW_S
 *     load open    PORT REQUEST RATE        WARM_S WINDOW_S [MOST_CONNECTIONS]
 *     load streams PORT REQUEST STREAMS     WARM_S WINDOW_S OPENED_PER_S OPEN_LIMIT_S
 *
 * REQUEST is a file with the whole request, head and body. `closed`: each connection sends its next request when it
 * has the answer. `open`: requests are due at a fixed rate, and latency counts from when one was due, not from when
 * it could be sent; those that no connection was free for by the end of the window are `unsent`. `streams`: that many streams at once; the window begins when all of them have had an event.
 * Answers 429, 503 and 529 are refusals, not errors.
 * Prints "begin" and "end" when the window does (whoever measures CPU reads those), then one line of JSON.
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

enum { MAX_FDS = 65536, HEAD_BYTES = 8192, MOST_ERRORS = 1000 };
#define NANOS 1000000000LL

enum reading { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

struct connection {
    bool busy, close_after, stopped, first_event;
    int64_t since;      /* when the request was due */
    size_t sent;
    enum reading reading;
    char head[HEAD_BYTES];
    int head_len, status, line_len;
    long left;          /* bytes of the body or the chunk still to come */
    bool in_stamp;
    int64_t stamp;      /* digits after an @ so far */
    int matched;        /* characters of "message_stop" seen */
};

struct samples {
    float *ms;
    size_t len, size;
};

static struct connection *connections[MAX_FDS];
static int idle[MAX_FDS], idle_len, open_len, most_open = 2000;
static int epoll_fd, port;
static char *request;
static size_t request_len;
static enum { CLOSED, OPEN, STREAMS } mode;
static struct samples latency, lag, first_byte, refusal;
static long errors, answered, refused, unsent, events, with_event, finished, unanswered;
static int64_t window_begin, window_end; /* 0 while unknown */

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NANOS + t.tv_nsec;
}

static bool in_window(int64_t at) { return window_begin && at >= window_begin && at < window_end; }

static void keep(struct samples *s, int64_t ns) {
    if (s->len == s->size) s->ms = realloc(s->ms, (s->size = s->size ? 2 * s->size : 65536) * sizeof(float));
    s->ms[s->len++] = (float)ns / 1e6f;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(struct samples *s, double part) {
    if (!s->len) return -1;
    qsort(s->ms, s->len, sizeof(float), by_size);
    return s->ms[(size_t)((double)(s->len - 1) * part)];
}

/* ---- connections ---- */

static int open_connection(void) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || fd >= MAX_FDS || connect(fd, (struct sockaddr *)&to, sizeof to)) {
        perror("load: connect");
        exit(1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (!connections[fd]) connections[fd] = malloc(sizeof(struct connection));
    memset(connections[fd], 0, sizeof(struct connection));
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    open_len++;
    return fd;
}

static void close_connection(int fd) {
    for (int i = 0; i < idle_len; i++)
        if (idle[i] == fd) idle[i--] = idle[--idle_len];
    close(fd);
    open_len--;
}

static void fail(const char *why, const char *detail) {
    if (++errors <= 3) fprintf(stderr, "load: %s: %.300s\n", why, detail);
    if (errors > MOST_ERRORS) exit(1);
}

static void send_request(int fd, int64_t since) {
    struct connection *c = connections[fd];
    c->busy = true;
    c->since = since;
    c->reading = HEAD;
    c->head_len = c->line_len = c->status = c->matched = 0;
    c->left = -1;
    c->first_event = c->stopped = c->close_after = false;
    if (write(fd, request, request_len) != (ssize_t)request_len) fail("write", strerror(errno));
}

/* What happens once an answer is whole: the next request, the idle list, or nothing more. */
static void answer_done(int fd) {
    struct connection *c = connections[fd];
    int64_t now = now_ns();
    bool refusing = c->status == 429 || c->status == 503 || c->status == 529;
    c->busy = false;
    if (c->status != 200 && !refusing) {
        char status[16];
        snprintf(status, sizeof status, "%d", c->status);
        fail("answer with status", status);
    }
    if (mode == STREAMS) {
        if (c->stopped) finished++;
        else fail("stream", "ended without message_stop");
        close_connection(fd);
        return;
    }
    if (refusing && in_window(now)) refused++, keep(&refusal, now - c->since);
    else if (in_window(now)) answered++;
    if (c->status == 200 && in_window(mode == OPEN ? c->since : now)) keep(&latency, now - c->since);
    bool again = mode == CLOSED && (!window_end || now < window_end);
    if (c->close_after) {
        close_connection(fd);
        fd = again ? open_connection() : -1;
    }
    if (again) send_request(fd, now);
    else if (fd >= 0) idle[idle_len++] = fd;
}

/* ---- reading answers ---- */

/* Looks for @time@ stamps and for message_stop, across any split of the bytes. */
static void scan(struct connection *c, const char *bytes, size_t len, int64_t now) {
    static const char last[] = "message_stop";
    for (size_t i = 0; i < len; i++) {
        char b = bytes[i];
        if (b == last[c->matched]) {
            if (!last[++c->matched]) c->stopped = true, c->matched = 0;
        } else {
            c->matched = b == last[0];
        }
        if (b == '@' && c->in_stamp && c->stamp) {
            if (!c->first_event) c->first_event = true, with_event++, keep(&first_byte, now - c->since);
            if (in_window(now)) events++, keep(&lag, now - c->stamp);
            c->in_stamp = false;
        } else if (b == '@') {
            c->in_stamp = true;
            c->stamp = 0;
        } else if (c->in_stamp && b >= '0' && b <= '9') {
            c->stamp = c->stamp * 10 + (b - '0');
        } else {
            c->in_stamp = false;
        }
    }
}

static void head_done(struct connection *c) {
    c->head[c->head_len] = 0;
    c->status = atoi(c->head + 9);
    c->reading = BODY;
    for (char *line = c->head; (line = strchr(line, '\n')) && *++line;) {
        if (!strncasecmp(line, "content-length:", 15)) c->left = atol(line + 15);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26)) c->reading = CHUNK_SIZE;
        if (!strncasecmp(line, "connection: close", 17)) c->close_after = true;
    }
}

/* Takes one byte of the framing between chunks; returns true at the end of the answer. */
static bool chunk_byte(struct connection *c, char b) {
    if (b == '\r') return false;
    if (c->reading == CHUNK_SIZE && b == '\n') {
        c->head[c->line_len] = 0;
        c->left = strtol(c->head, NULL, 16);
        c->reading = c->left ? CHUNK : TRAILER;
        c->line_len = 0;
    } else if (c->reading == CHUNK_SIZE) {
        if (c->line_len < HEAD_BYTES - 1) c->head[c->line_len++] = b;
    } else if (c->reading == CHUNK_END) {
        c->reading = CHUNK_SIZE;
    } else if (b == '\n') { /* TRAILER: an empty line ends it */
        if (!c->line_len) return true;
        c->line_len = 0;
    } else {
        c->line_len++;
    }
    return false;
}

/* Feeds bytes to the parser; returns true when the answer is whole. */
static bool feed(struct connection *c, const char *bytes, size_t len, int64_t now) {
    for (size_t i = 0; i < len;) {
        if (c->reading == HEAD) {
            if (c->head_len >= HEAD_BYTES - 1) exit((fprintf(stderr, "load: answer head too long\n"), 1));
            c->head[c->head_len++] = bytes[i++];
            if (c->head_len >= 4 && !memcmp(c->head + c->head_len - 4, "\r\n\r\n", 4)) head_done(c);
            if (c->reading == BODY && !c->left) return true;
        } else if (c->reading == BODY || c->reading == CHUNK) {
            size_t n = len - i;
            if (c->left >= 0 && n > (size_t)c->left) n = (size_t)c->left;
            if (mode == STREAMS) scan(c, bytes + i, n, now);
            i += n;
            if (c->left < 0) continue; /* the answer ends with the connection */
            c->left -= (long)n;
            if (!c->left && c->reading == BODY) return true;
            if (!c->left) c->reading = CHUNK_END;
        } else if (chunk_byte(c, bytes[i++])) {
            return true;
        }
    }
    return false;
}

static void readable(int fd) {
    static char bytes[256 * 1024];
    struct connection *c = connections[fd];
    ssize_t n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) {
        if (feed(c, bytes, (size_t)n, now_ns())) answer_done(fd);
        return;
    }
    if (c->busy && c->reading == BODY && c->left < 0) {
        c->close_after = true;
        answer_done(fd);
        return;
    }
    bool was_busy = c->busy;
    if (was_busy) fail("connection", "closed in the middle of an answer");
    close_connection(fd);
    if (was_busy && mode == CLOSED) send_request(open_connection(), now_ns());
}

/* ---- the run ---- */

/* Waits for events until `until`. */
static void turn(int64_t until) {
    struct epoll_event ready[512];
    int64_t wait = until - now_ns();
    if (wait < 0) wait = 0;
    struct timespec limit = {wait / NANOS, wait % NANOS};
    int n = epoll_pwait2(epoll_fd, ready, 512, &limit, NULL);
    for (int i = 0; i < n; i++) readable(ready[i].data.fd);
}

static void run_until(int64_t until) {
    while (now_ns() < until) turn(until);
}

static void announce(const char *what) {
    puts(what);
    fflush(stdout);
}

static void run_window(double warm_s, double window_s) {
    run_until(now_ns() + (int64_t)(warm_s * 1e9));
    window_begin = now_ns();
    window_end = window_begin + (int64_t)(window_s * 1e9);
    announce("begin");
    run_until(window_end);
    announce("end");
}

/* Waits for what is still under way, so that the next measurement begins with an idle gateway. */
static void drain(double limit_s) {
    int64_t limit = now_ns() + (int64_t)(limit_s * 1e9);
    while (open_len > idle_len && now_ns() < limit) turn(now_ns() + NANOS / 100);
    unanswered = open_len - idle_len;
}

static void run_closed(int count, double warm_s, double window_s) {
    for (int i = 0; i < count; i++) send_request(open_connection(), now_ns());
    run_window(warm_s, window_s);
    drain(15);
}

static void run_open(double rate, double warm_s, double window_s) {
    int64_t start = now_ns(), step = (int64_t)(1e9 / rate), due = start;
    window_begin = start + (int64_t)(warm_s * 1e9);
    window_end = window_begin + (int64_t)(window_s * 1e9);
    bool begun = false;
    for (int64_t now = start; now < window_end; now = now_ns()) {
        if (!begun && now >= window_begin) announce("begin"), begun = true;
        while (due <= now && due < window_end && (idle_len || open_len < most_open)) {
            send_request(idle_len ? idle[--idle_len] : open_connection(), due);
            due += step;
        }
        bool full = due <= now; /* no connection free: wait for one, not for the clock */
        int64_t next = full || due > window_end ? window_end : due;
        turn(!begun && window_begin < next ? window_begin : next);
    }
    for (; due < window_end && (idle_len || open_len < most_open); due += step)
        send_request(idle_len ? idle[--idle_len] : open_connection(), due);
    announce("end");
    drain(15);
    if (window_end > due) unsent = (window_end - due) / step;
}

static void run_streams(int count, double warm_s, double window_s, double opened_per_s, double open_limit_s) {
    int64_t start = now_ns(), limit = start + (int64_t)(open_limit_s * 1e9);
    for (int i = 0; i < count; i++) {
        int64_t due = start + (int64_t)(i * 1e9 / opened_per_s);
        run_until(due);
        send_request(open_connection(), now_ns());
    }
    while (with_event < count && now_ns() < limit) turn(now_ns() + NANOS / 100);
    run_window(warm_s, window_s);
    drain(30); /* the upstream was told at "end" to finish all streams */
}

static void read_request(const char *path) {
    FILE *f = fopen(path, "rb");
    request = malloc(1 << 20);
    if (!f || !(request_len = fread(request, 1, 1 << 20, f))) {
        perror(path);
        exit(1);
    }
    fclose(f);
}

static void report(double window_s) {
    printf("{\"requests\":%ld,\"errors\":%ld,\"unanswered\":%ld,\"window_s\":%.3f,\"p50_ms\":%.4f,\"p99_ms\":%.4f,"
           "\"refused\":%ld,\"refused_p99_ms\":%.4f,\"unsent\":%ld,"
           "\"with_event\":%ld,\"events\":%ld,\"lag_p50_ms\":%.4f,\"lag_p99_ms\":%.4f,\"first_p50_ms\":%.3f,"
           "\"finished\":%ld}\n",
           answered, errors, unanswered, window_s, percentile(&latency, .5), percentile(&latency, .99), refused,
           percentile(&refusal, .99), unsent, with_event,
           events, percentile(&lag, .5), percentile(&lag, .99), percentile(&first_byte, .5), finished);
}

int main(int argc, char **argv) {
    if (argc < 7) {
        fprintf(stderr, "usage: load closed|open|streams PORT REQUEST N WARM_S WINDOW_S [MORE]\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    port = atoi(argv[2]);
    read_request(argv[3]);
    double n = atof(argv[4]), warm_s = atof(argv[5]), window_s = atof(argv[6]);
    if (!strcmp(argv[1], "streams") && argc == 9) {
        mode = STREAMS;
        run_streams((int)n, warm_s, window_s, atof(argv[7]), atof(argv[8]));
    } else if (!strcmp(argv[1], "open")) {
        mode = OPEN;
        if (argc == 8) most_open = atoi(argv[7]);
        run_open(n, warm_s, window_s);
    } else {
        mode = CLOSED;
        run_closed((int)n, warm_s, window_s);
    }
    report(window_s);
    return 0;
}
