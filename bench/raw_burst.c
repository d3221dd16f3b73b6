/* The floor under latency: one send() for each of many sockets, until another process has read the last of them.
 *
 * raw_burst CONNECTIONS BYTES SECONDS
 * Sends a message of so many bytes to each socket, waits until all have been read, and begins again, for so long. Prints
 * how many nanoseconds each time took, from before the first send() to after the last recv(). */
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "raw.h"

/* Connect, then tell the other process through `done` whenever every socket has had its message. */
static void read_all(struct sockaddr_in *address, int connections, size_t bytes, int done)
{
    struct epoll_event ready[256], interest = {.events = EPOLLIN};
    char *buffer = malloc(bytes);
    int poll = epoll_create1(0);
    must(buffer != NULL && poll >= 0, "epoll_create1");
    for (int i = 0; i < connections; i++) {
        interest.data.fd = socket(AF_INET, SOCK_STREAM, 0);
        must(interest.data.fd >= 0, "socket");
        must(connect(interest.data.fd, (struct sockaddr *)address, sizeof *address) == 0, "connect");
        must(epoll_ctl(poll, EPOLL_CTL_ADD, interest.data.fd, &interest) == 0, "epoll_ctl");
    }
    for (size_t received = 0;;) {
        int count = epoll_wait(poll, ready, 256, -1);
        must(count > 0, "epoll_wait");
        for (int i = 0; i < count; i++) {
            ssize_t size = recv(ready[i].data.fd, buffer, bytes, 0);
            must(size >= 0, "recv");
            if (size == 0)
                exit(0);
            received += (size_t)size;
        }
        if (received == (size_t)connections * bytes) {
            long long at = nanoseconds(CLOCK_MONOTONIC);
            must(write(done, &at, sizeof at) == sizeof at, "write");
            received = 0;
        }
    }
}

int main(int count, char **arguments)
{
    must(count == 4, "usage: raw_burst CONNECTIONS BYTES SECONDS");
    int connections = atoi(arguments[1]), done[2];
    size_t bytes = (size_t)atol(arguments[2]);
    long long limit = (long long)(atof(arguments[3]) * 1e9);
    int *sockets = calloc((size_t)connections, sizeof *sockets);
    char *message = malloc(bytes);
    must(connections > 0 && bytes > 0 && sockets != NULL && message != NULL, "arguments");
    memset(message, 'x', bytes);

    struct sockaddr_in address;
    int listener = listen_on_loopback(&address);
    must(pipe(done) == 0, "pipe");
    pid_t reader = fork();
    must(reader >= 0, "fork");
    if (reader == 0) {
        close(listener);
        read_all(&address, connections, bytes, done[1]);
    }
    close(done[1]);
    accept_all(listener, sockets, connections);

    for (long long start = nanoseconds(CLOCK_MONOTONIC), began; (began = nanoseconds(CLOCK_MONOTONIC)) - start < limit;) {
        long long at;
        for (int i = 0; i < connections; i++)
            must(send(sockets[i], message, bytes, 0) == (ssize_t)bytes, "send");
        must(read(done[0], &at, sizeof at) == sizeof at, "read");
        printf("%lld\n", at - began);
    }
    for (int i = 0; i < connections; i++)
        close(sockets[i]);
    must(waitpid(reader, NULL, 0) == reader, "waitpid");
    return 0;
}
