/* The yardstick for fan-out: one send() for each message to each socket, in a loop, and nothing else.
 *
 * raw_send CONNECTIONS BYTES SECONDS
 * Prints the port that it listens on; once so many connections have come, sends messages of so many bytes to all of
 * them, round by round, for so long; prints how many messages, in how many seconds, with how many seconds of CPU. */
#include <string.h>

#include "raw.h"

static double seconds(clockid_t clock)
{
    return (double)nanoseconds(clock) / 1e9;
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

    struct sockaddr_in address;
    int listener = listen_on_loopback(&address);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    accept_all(listener, sockets, connections);

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
