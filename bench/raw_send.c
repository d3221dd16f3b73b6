/* The yardstick for fan-out: one send() for each message to each socket, in a loop, and nothing else.
 *
 * raw_send CONNECTIONS BYTES SECONDS
 * Prints the port that it listens on; once so many connections have come, sends messages of so many bytes to all of
 * them, round by round, for so long; prints how many messages, in how many seconds, with how many seconds of CPU. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void must(int fine, const char *what)
{
    if (!fine) {
        perror(what);
        exit(1);
    }
}

static int listen_on_loopback(void)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    must(listener >= 0, "socket");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    must(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    must(listen(listener, 4096) == 0, "listen");
    must(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "getsockname");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int count, char **arguments)
{
    must(count == 4, "usage: raw_send CONNECTIONS BYTES SECONDS");
    int connections = atoi(arguments[1]);
    size_t bytes = (size_t)atol(arguments[2]);
    double limit = atof(arguments[3]);
    int *sockets = calloc((size_t)connections, sizeof *sockets);
    char *message = malloc(bytes);
    must(connections > 0 && bytes > 0 && sockets != NULL && message != NULL, "arguments");
    memset(message, 'x', bytes);

    int listener = listen_on_loopback();
    for (int i = 0; i < connections; i++) {
        int on = 1;
        sockets[i] = accept(listener, NULL, NULL);
        must(sockets[i] >= 0, "accept");
        must(setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "setsockopt");
    }

    double began = seconds(CLOCK_MONOTONIC), used = seconds(CLOCK_PROCESS_CPUTIME_ID), took;
    long long messages = 0;
    do {
        for (int i = 0; i < connections; i++)
            must(send(sockets[i], message, bytes, 0) == (ssize_t)bytes, "send");
        messages += connections;
        took = seconds(CLOCK_MONOTONIC) - began;
    } while (took < limit);
    used = seconds(CLOCK_PROCESS_CPUTIME_ID) - used;
    printf("%lld %.6f %.6f\n", messages, took, used);
    return 0;
}
