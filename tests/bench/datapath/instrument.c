/* What a way of packets costs: one thread, on one processor, holds both ends of it. Whatever the kernel does between
 * them (veth, bridge, netfilter, both sockets) is done on this thread's time, however busy the machine is.
 *
 *   instrument OPERATION ROUNDS MILLISECONDS PAYLOAD [NAME FROM TO ADDRESS PORT FRAME]...
 *
 * FROM and TO are files of network namespaces, or NAMESPACE:TAP for the guest's end of a tap. FRAME is what such a
 * guest sends, in hexadecimal, else "-". All ways take turns in slices, round by round, in an order that changes.
 * Printed for each slice: round, name, operations, nanoseconds of the thread, and how often something was not there
 * at once: then another thread (ksoftirqd) has done a part of the work. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define AT_ONCE 64 /* datagrams of one system call */
#define MOST 64    /* ways */
#define PATIENCE 5000
#define STREAM_BUFFER (2 << 20)
#define WRITTEN 65536
#define WARM_UP 20
#define GREETINGS 100
#define GREETING_WAIT 100

struct way {
	const char *name, *from, *to;
	struct sockaddr_storage address;
	socklen_t length;
	int sender, receiver, listener;
	unsigned char frame[2048];
	size_t frame_size;
};

static struct way ways[MOST];
static int count;
static int payload;
static long late;
static char buffer[1 << 20];
static char received[AT_ONCE][2048];
static struct iovec sent_parts[AT_ONCE], received_parts[AT_ONCE];
static struct mmsghdr to_send[AT_ONCE], to_receive[AT_ONCE];

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "instrument: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long nanoseconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

static bool is_tap(const char *end)
{
	return strchr(end, ':') != NULL;
}

static void enter(const char *end)
{
	char path[256];
	int fd;

	snprintf(path, sizeof path, "%.*s", (int)strcspn(end, ":"), end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		fail(path);
	close(fd);
}

static void wait_for(int fd, short events, const char *what)
{
	struct pollfd one = {.fd = fd, .events = events};

	late++;
	if (poll(&one, 1, PATIENCE) != 1) {
		errno = ETIMEDOUT;
		fail(what);
	}
}

static int make_socket(const struct way *way, int kind)
{
	int fd = socket(way->address.ss_family, kind | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("socket");
	return fd;
}

static void set(int fd, int level, int option, int value)
{
	if (setsockopt(fd, level, option, &value, sizeof value))
		fail("setsockopt");
}

static void unblock(int fd)
{
	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
		fail("fcntl");
}

/* Bound to the way's port on all addresses. */
static int bound(const struct way *way, int kind)
{
	struct sockaddr_storage any = way->address;
	int fd;

	enter(way->to);
	fd = make_socket(way, kind);
	if (any.ss_family == AF_INET6)
		((struct sockaddr_in6 *)&any)->sin6_addr = in6addr_any;
	else
		((struct sockaddr_in *)&any)->sin_addr.s_addr = INADDR_ANY;
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	set(fd, SOL_SOCKET, SO_RCVBUFFORCE, 2 * STREAM_BUFFER);
	if (bind(fd, (struct sockaddr *)&any, way->length))
		fail("bind");
	return fd;
}

/* In the namespace that the thread is in. */
static int connected(const struct way *way, int kind)
{
	int fd = make_socket(way, kind);

	set(fd, SOL_SOCKET, SO_SNDBUFFORCE, 2 * STREAM_BUFFER);
	if (connect(fd, (const struct sockaddr *)&way->address, way->length))
		fail(way->name);
	return fd;
}

static int tap(const char *end)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	int fd;

	enter(end);
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	snprintf(request.ifr_name, IFNAMSIZ, "%s", strchr(end, ':') + 1);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
		fail(end);
	return fd;
}

/* Takes what has come; false if none of it was a datagram: bridges and links speak, too. */
static bool has_come(const struct way *way)
{
	ssize_t size;

	if (!is_tap(way->to))
		return true;
	while ((size = read(way->receiver, buffer, sizeof buffer)) > 0)
		if (size > 23 && buffer[12] == 8 && buffer[13] == 0 && buffer[23] == IPPROTO_UDP)
			return true;
	return false;
}

/* A link that has just got its carrier passes nothing for a moment. */
static void reach(const struct way *way)
{
	struct pollfd one = {.fd = way->receiver, .events = POLLIN};

	for (int tries = 0; tries < GREETINGS; tries++) {
		/* A bridge learns where the guest is. */
		if (is_tap(way->to) && write(way->receiver, way->frame, way->frame_size) < 0 && errno != EIO)
			fail(way->name);
		if (is_tap(way->from) ? write(way->sender, way->frame, way->frame_size) < 0 && errno != EIO
				      : send(way->sender, "?", 1, 0) < 0 && errno != ECONNREFUSED)
			fail(way->name);
		if (poll(&one, 1, GREETING_WAIT) == 1 && has_come(way))
			return;
	}
	errno = ETIMEDOUT;
	fail(way->name);
}

/* One datagram back: conntrack has seen both directions then. */
static void answer(const struct way *way)
{
	struct pollfd one = {.fd = way->sender, .events = POLLIN};
	struct sockaddr_storage peer;
	socklen_t length = sizeof peer;
	char byte;

	if (recvfrom(way->receiver, &byte, 1, MSG_DONTWAIT, (struct sockaddr *)&peer, &length) != 1 ||
	    sendto(way->receiver, "!", 1, 0, (struct sockaddr *)&peer, length) != 1)
		fail(way->name);
	if (poll(&one, 1, PATIENCE) != 1 || recv(way->sender, &byte, 1, 0) != 1)
		fail(way->name);
}

static void open_datagrams(struct way *way)
{
	way->receiver = is_tap(way->to) ? tap(way->to) : bound(way, SOCK_DGRAM);
	enter(way->from);
	way->sender = is_tap(way->from) ? tap(way->from) : connected(way, SOCK_DGRAM);
	unblock(way->receiver);
	unblock(way->sender);
	reach(way);
	if (!is_tap(way->to) && !is_tap(way->from))
		answer(way);
	while (read(way->receiver, buffer, sizeof buffer) > 0)
		;
}

static void open_stream(struct way *way, bool sized)
{
	struct linger reset = {1, 0};

	if (way->listener == 0) {
		way->listener = bound(way, SOCK_STREAM);
		/* Sizes that the kernel chooses differ from one connection to the next. */
		if (sized)
			set(way->listener, SOL_SOCKET, SO_RCVBUFFORCE, STREAM_BUFFER);
		if (listen(way->listener, 1024))
			fail("listen");
	} else {
		setsockopt(way->sender, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
		close(way->sender);
		close(way->receiver);
	}
	enter(way->from);
	way->sender = connected(way, SOCK_STREAM);
	way->receiver = accept4(way->listener, NULL, NULL, SOCK_CLOEXEC);
	if (way->receiver < 0)
		fail("accept");
	set(way->sender, IPPROTO_TCP, TCP_NODELAY, 1);
	set(way->receiver, IPPROTO_TCP, TCP_NODELAY, 1);
	unblock(way->sender);
	unblock(way->receiver);
}

static void open_round_trips(struct way *way)
{
	open_stream(way, false);
}

static void open_listener(struct way *way)
{
	way->listener = bound(way, SOCK_STREAM);
	if (listen(way->listener, 1024))
		fail("listen");
}

static void send_datagrams(const struct way *way)
{
	for (int sent = 0; sent < AT_ONCE;) {
		int n = sendmmsg(way->sender, to_send + sent, (unsigned int)(AT_ONCE - sent), 0);

		if (n > 0)
			sent += n;
		else if (errno == EAGAIN || errno == ENOBUFS)
			wait_for(way->sender, POLLOUT, way->name);
		else if (errno != ECONNREFUSED)
			fail(way->name);
	}
}

static void receive_datagrams(const struct way *way)
{
	for (int got = 0; got < AT_ONCE;) {
		int n = recvmmsg(way->receiver, to_receive, (unsigned int)(AT_ONCE - got), MSG_DONTWAIT, NULL);

		if (n > 0)
			got += n;
		else
			wait_for(way->receiver, POLLIN, way->name);
	}
}

static long datagrams(struct way *way)
{
	send_datagrams(way);
	receive_datagrams(way);
	return AT_ONCE;
}

static long into_tap(struct way *way)
{
	send_datagrams(way);
	for (int got = 0; got < AT_ONCE;) {
		if (read(way->receiver, buffer, sizeof buffer) > 0)
			got++;
		else
			wait_for(way->receiver, POLLIN, way->name);
	}
	return AT_ONCE;
}

static long out_of_tap(struct way *way)
{
	for (int i = 0; i < AT_ONCE; i++)
		if (write(way->sender, way->frame, way->frame_size) != (ssize_t)way->frame_size)
			fail(way->name);
	receive_datagrams(way);
	return AT_ONCE;
}

static void take(int fd, const char *name, struct sockaddr_storage *peer, socklen_t *length)
{
	while (recvfrom(fd, buffer, 64, MSG_DONTWAIT, (struct sockaddr *)peer, length) < 0)
		wait_for(fd, POLLIN, name);
}

static long datagram_round_trip(struct way *way)
{
	struct sockaddr_storage peer;
	socklen_t length = sizeof peer;

	send(way->sender, "x", 1, 0);
	take(way->receiver, way->name, &peer, &length);
	sendto(way->receiver, "y", 1, 0, (struct sockaddr *)&peer, length);
	take(way->sender, way->name, NULL, NULL);
	return 1;
}

static long round_trip(struct way *way)
{
	send(way->sender, "x", 1, 0);
	take(way->receiver, way->name, NULL, NULL);
	send(way->receiver, "y", 1, 0);
	take(way->sender, way->name, NULL, NULL);
	return 1;
}

/* In KiB. */
static long stream(struct way *way)
{
	long bytes = 0;

	if (send(way->sender, buffer, WRITTEN, 0) < 0 && errno != EAGAIN)
		fail(way->name);
	for (long n; (n = recv(way->receiver, buffer, sizeof buffer, MSG_DONTWAIT)) > 0;)
		bytes += n;
	return bytes / 1024;
}

/* Both sides close by a reset: no port stays in use. */
static long connection(struct way *way)
{
	struct linger reset = {1, 0};
	int here, there;

	here = connected(way, SOCK_STREAM);
	setsockopt(here, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
	there = accept4(way->listener, NULL, NULL, SOCK_CLOEXEC);
	if (there < 0)
		fail("accept");
	send(here, "x", 1, 0);
	take(there, way->name, NULL, NULL);
	send(there, "y", 1, 0);
	take(here, way->name, NULL, NULL);
	close(here);
	close(there);
	return 1;
}

static void enter_sender(struct way *way)
{
	enter(way->from);
}

static void fill_stream(struct way *way)
{
	open_stream(way, true);
	for (int i = 0; i < 300; i++)
		stream(way);
}

static const struct operation {
	const char *name;
	void (*open)(struct way *);
	void (*before)(struct way *);
	long (*run)(struct way *);
} operations[] = {
	{"udp", open_datagrams, NULL, datagrams},
	{"udp-round-trip", open_datagrams, NULL, datagram_round_trip},
	{"tcp-round-trip", open_round_trips, NULL, round_trip},
	{"tcp-stream", NULL, fill_stream, stream},
	{"connection", open_listener, enter_sender, connection},
	{"into-tap", open_datagrams, NULL, into_tap},
	{"out-of-tap", open_datagrams, NULL, out_of_tap},
	{NULL, NULL, NULL, NULL},
};

static void parse_frame(struct way *way, const char *hex)
{
	unsigned int byte;

	for (; *hex != '-' && sscanf(hex, "%2x", &byte) == 1 && way->frame_size < sizeof way->frame; hex += 2)
		way->frame[way->frame_size++] = (unsigned char)byte;
}

static void parse(struct way *way, char **words)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)&way->address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&way->address;
	in_port_t port = htons((in_port_t)atoi(words[4]));

	way->name = words[0];
	way->from = words[1];
	way->to = words[2];
	if (inet_pton(AF_INET6, words[3], &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = port;
		way->length = sizeof *v6;
	} else if (inet_pton(AF_INET, words[3], &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = port;
		way->length = sizeof *v4;
	} else {
		errno = EINVAL;
		fail(words[3]);
	}
	parse_frame(way, words[5]);
}

static void measure(const struct operation *operation, struct way *way, int round, long slice)
{
	long done = 0, begun, spent, end;

	if (operation->before != NULL)
		operation->before(way);
	for (int i = 0; i < WARM_UP; i++)
		operation->run(way);
	late = 0;
	end = nanoseconds(CLOCK_MONOTONIC) + slice;
	begun = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
	do
		for (int i = 0; i < 8; i++)
			done += operation->run(way);
	while (nanoseconds(CLOCK_MONOTONIC) < end);
	spent = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - begun;
	if (round >= 0)
		printf("%d %s %ld %ld %ld\n", round, way->name, done, spent, late);
}

int main(int argc, char **argv)
{
	const struct operation *operation = operations;
	int rounds;
	long slice;
	int processor = sched_getcpu();
	cpu_set_t one;

	if (argc < 11 || (argc - 5) % 6 != 0 || (argc - 5) / 6 > MOST) {
		fprintf(stderr, "instrument: see the head of its source\n");
		return 2;
	}
	while (operation->name != NULL && strcmp(operation->name, argv[1]) != 0)
		operation++;
	if (operation->name == NULL) {
		fprintf(stderr, "instrument: %s: no such operation\n", argv[1]);
		return 2;
	}
	rounds = atoi(argv[2]);
	slice = atol(argv[3]) * 1000000L;
	payload = atoi(argv[4]);
	CPU_ZERO(&one);
	CPU_SET((size_t)processor, &one);
	if (processor < 0 || sched_setaffinity(0, sizeof one, &one) || setpriority(PRIO_PROCESS, 0, -15))
		fail("a processor of its own");
	for (int i = 0; i < AT_ONCE; i++) {
		sent_parts[i] = (struct iovec){buffer, (size_t)payload};
		received_parts[i] = (struct iovec){received[i], sizeof received[i]};
		to_send[i].msg_hdr = (struct msghdr){.msg_iov = &sent_parts[i], .msg_iovlen = 1};
		to_receive[i].msg_hdr = (struct msghdr){.msg_iov = &received_parts[i], .msg_iovlen = 1};
	}
	for (int i = 5; i < argc; i += 6)
		parse(&ways[count++], argv + i);
	for (int i = 0; i < count; i++)
		if (operation->open != NULL)
			operation->open(&ways[i]);
	for (int round = -1; round < rounds; round++)
		for (int i = 0; i < count; i++) {
			int turn = (i + round + count) % count;

			measure(operation, &ways[round % 2 ? count - 1 - turn : turn], round, slice);
		}
	return 0;
}
