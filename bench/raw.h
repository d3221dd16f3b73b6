/* What the loops in C share: failing loudly, a clock, and sockets on the loopback. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

static void must(int fine, const char *what)
{
    if (!fine) {
        perror(what);
        exit(1);
    }
}

static long long nanoseconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A socket that listens on a port of the kernel's choice; its address is put into `address`. */
static int listen_on_loopback(struct sockaddr_in *address)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t size = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    must(listener >= 0, "socket");
    must(bind(listener, (struct sockaddr *)address, size) == 0, "bind");
    must(listen(listener, 4096) == 0, "listen");
    must(getsockname(listener, (struct sockaddr *)address, &size) == 0, "getsockname");
    return listener;
}

static void accept_all(int listener, int *sockets, int connections)
{
    for (int i = 0; i < connections; i++) {
        int on = 1;
        sockets[i] = accept(listener, NULL, NULL);
        must(sockets[i] >= 0, "accept");
        must(setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "setsockopt");
    }
}
