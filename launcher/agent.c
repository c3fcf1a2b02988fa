/* With the agent: one request on its socket, and the answer (docs/agent-protocol.md). */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define RUNDIR "/run/cnvnet"
#define ANSWER_LIMIT ((size_t)16 * 1024 * 1024) /* cnvnet.launch.protocol.ANSWER_LIMIT */
#define NSFS 0x6e736673				/* NSFS_MAGIC of linux/magic.h */

enum { NETNS, SELF, MNT, ROOT, DESCRIPTORS };
static const char *const descriptor_names[DESCRIPTORS] = {"netns", "self", "mnt", "root"};

struct text reason;

static void set_reason(const char *what, int error)
{
	reason.size = 0;
	append(&reason, what);
	if (error != 0) {
		append(&reason, " (");
		append_errno(&reason, error);
		append(&reason, ")");
	}
}

static enum outcome agent_outcome(enum outcome outcome, const char *path, const char *what, int error)
{
	struct text text = {0};

	append(&text, "the agent at ");
	append(&text, path);
	append(&text, what);
	put(&text, "", 1);
	set_reason(text.at, error);
	return outcome;
}

/* Sets the path of the agent's socket; false if CNVNET_AGENT is off. */
bool agent_path(struct text *path)
{
	const char *named = variable("CNVNET_AGENT"), *folder = variable("CNVNET_RUNDIR");

	if (strcmp(named, "off") == 0)
		return false;
	if (strchr(named, '/') != NULL) {
		append(path, named);
	} else {
		append(path, *folder ? folder : RUNDIR);
		append(path, "/agent.sock");
	}
	put(path, "", 1);
	return true;
}

/*
 * Whether the process that listens at the other end is root's or our own user's. Another user who can write in RUNDIR
 * could put a socket there, get the pod's namespace by it and forge the result.
 */
static bool is_trusted(int fd, const char *path)
{
	struct ucred peer = {0};
	struct text line = {0};
	socklen_t size = sizeof peer;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == 0 || peer.uid == geteuid()))
		return true;
	append(&line, path);
	append(&line, " belongs to a process of user ");
	append_number(&line, peer.uid);
	append(&line, ", not of root: it is not asked\n");
	write_all(STDERR_FILENO, line.at, line.size);
	return false;
}

/* Opens the namespace at CNI_NETNS: -1 if there is none, -2 if this process could not open it. */
static int open_netns(void)
{
	struct statfs kind;
	/* The path may lead anywhere: opening a FIFO must not block, and a terminal must not execute ours. */
	int fd = open(variable("CNI_NETNS"), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return errno == EMFILE || errno == ENFILE || errno == ENOMEM ? -2 : -1;
	if (fstatfs(fd, &kind) == 0 && (unsigned long)kind.f_type == NSFS)
		return fd;
	close(fd); /* a plain file: the namespace that was mounted there has gone */
	return -1;
}

static void close_descriptors(const int *fds)
{
	for (int i = 0; i < DESCRIPTORS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* Opens the caller's namespaces and root. The agent refuses a call without them; CNI_NETNS may be missing. */
static bool open_descriptors(int *fds)
{
	fds[SELF] = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	fds[MNT] = open("/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC);
	fds[ROOT] = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	fds[NETNS] = -1;
	if (fds[SELF] >= 0 && fds[MNT] >= 0 && fds[ROOT] >= 0 && (fds[NETNS] = open_netns()) >= -1)
		return true;
	set_reason("this process' own namespaces in /proc cannot be opened", errno);
	close_descriptors(fds);
	return false;
}

/* Connects to the agent. On failure returns -1 and sets the outcome. */
static int connect_to(const char *path, enum outcome *outcome)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	/* connect() on a UNIX socket waits for this long when the listener's backlog is full. */
	const struct timeval patience = {.tv_sec = CONNECT_SECONDS};
	int fd, error = ENAMETOOLONG;

	*outcome = NOT_RUN;
	if (strlen(path) < sizeof address.sun_path) {
		memcpy(address.sun_path, path, strlen(path));
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd >= 0) {
			setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
			do
				error = connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 ? 0 : errno;
			while (error == EINTR);
			if (error == 0 && is_trusted(fd, path))
				return fd;
			if (error == 0)
				error = EPERM;
			close(fd);
		} else {
			error = errno;
		}
	}
	if (error == EAGAIN) {
		*outcome = agent_outcome(FAILED, path, " is too busy to take the call", 0);
	} else {
		agent_outcome(NOT_RUN, path, " is not there", error);
	}
	return -1;
}

static bool forwarded(const char *entry)
{
	return strncmp(entry, "CNI_", 4) == 0 || strncmp(entry, "CNVNET_", 7) == 0 ||
	       strncmp(entry, "TRACEPARENT=", 12) == 0;
}

/* Writes the whole request, with `command` in the place of the environment's CNI_COMMAND. */
static void compose(struct text *request, const struct call *call, const char *command, const int *fds)
{
	size_t last = 0;
	bool first = true;

	put(request, "\0\0\0\0", 4);
	append(request, "{\"v\":" VERSION ",\"argv0\":");
	append_json(request, call->name, strlen(call->name));
	append(request, ",\"fds\":[");
	for (int i = 0; i < DESCRIPTORS; i++) {
		if (fds[i] < 0)
			continue;
		append(request, first ? "" : ",");
		append_json(request, descriptor_names[i], strlen(descriptor_names[i]));
		first = false;
	}
	append(request, "],\"env\":{");
	while (environ[last] != NULL)
		last++;
	first = true;
	/* Backwards: of a variable that is there twice, getenv() takes the first and a JSON reader the last. */
	while (last-- > 0) {
		const char *entry = environ[last], *equals = strchr(entry, '=');
		if (equals == NULL || !forwarded(entry) || strncmp(entry, "CNI_COMMAND=", 12) == 0)
			continue;
		append(request, first ? "" : ",");
		append_json(request, entry, (size_t)(equals - entry));
		append(request, ":");
		append_json(request, equals + 1, strlen(equals + 1));
		first = false;
	}
	if (*command) {
		append(request, first ? "\"CNI_COMMAND\":" : ",\"CNI_COMMAND\":");
		append_json(request, command, strlen(command));
	}
	append(request, "},\"stdin\":\"");
	append_base64(request, call->input.at, call->input.size);
	append(request, "\"}");
	size_t size = request->size - 4;
	for (int i = 0; i < 4; i++)
		request->at[i] = (char)(size >> (24 - 8 * i) & 255);
}

/* Waits until the socket is ready. After the deadline: false, with ETIMEDOUT. */
static bool ready(int fd, short events, time_t deadline)
{
	struct pollfd one = {.fd = fd, .events = events};

	for (;;) {
		struct timespec now;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec >= deadline) {
			errno = ETIMEDOUT;
			return false;
		}
		int n = poll(&one, 1, (int)(deadline - now.tv_sec) * 1000);
		if (n > 0)
			return true;
		if (n < 0 && errno != EINTR)
			return false;
	}
}

/* The descriptors go with the first byte alone, so that no reader gets a part of the request without them. */
static ssize_t send_first(int fd, char *byte, const int *fds)
{
	union {
		char room[CMSG_SPACE(DESCRIPTORS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec one = {.iov_base = byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = control.room};
	int sent[DESCRIPTORS];
	size_t count = 0;

	for (int i = 0; i < DESCRIPTORS; i++)
		if (fds[i] >= 0)
			sent[count++] = fds[i];
	memset(&control, 0, sizeof control);
	message.msg_controllen = (socklen_t)CMSG_SPACE(count * sizeof(int));
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = (socklen_t)CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), sent, count * sizeof(int));
	return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static bool send_all(int fd, const struct text *request, const int *fds, time_t deadline)
{
	for (size_t done = 0; done < request->size;) {
		ssize_t n = done == 0 ? send_first(fd, request->at, fds)
				      : send(fd, request->at + done, request->size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n >= 0)
			done += (size_t)n;
		else if (errno == EAGAIN ? !ready(fd, POLLOUT, deadline) : errno != EINTR)
			return false;
	}
	return true;
}

/* Reads exactly `size` bytes. Else false, with errno 0 when the agent has closed the connection. */
static bool receive(int fd, char *to, size_t size, time_t deadline)
{
	while (size > 0) {
		ssize_t n = recv(fd, to, size, MSG_DONTWAIT);
		if (n > 0) {
			to += n;
			size -= (size_t)n;
		} else if (n == 0) {
			errno = 0;
			return false;
		} else if (errno == EAGAIN ? !ready(fd, POLLIN, deadline) : errno != EINTR) {
			return false;
		}
	}
	return true;
}

static enum outcome parse_answer(const struct text *document, struct answer *answer, const char *path)
{
	const struct span whole = {document->at, document->at + document->size};
	struct span v, unsupported, status, out, err;

	if (!member(whole, "unsupported", &unsupported) || !member(whole, "v", &v) ||
	    !member(whole, "exit", &status) || !member(whole, "stdout", &out) || !member(whole, "stderr", &err))
		return agent_outcome(FAILED, path, " has answered what is no JSON object", 0);
	if (equals(unsupported, "true"))
		return agent_outcome(NOT_RUN, path, " does not run such calls", 0);
	if (!equals(v, VERSION) || !read_exit(status, &answer->exit) || !read_base64(out, &answer->out) ||
	    !read_base64(err, &answer->err))
		return agent_outcome(FAILED, path, " has answered what is no answer to a call", 0);
	return ANSWERED;
}

/* Sends one request on a connected socket and reads its answer. */
static enum outcome exchange(int fd, const struct text *request, const int *fds, struct answer *answer,
			     const char *path)
{
	struct text document = {0};
	unsigned char length[4];
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	time_t deadline = now.tv_sec + CALL_SECONDS;
	if (!send_all(fd, request, fds, deadline))
		return agent_outcome(FAILED, path, " was lost while the call was sent", errno);
	if (!receive(fd, (char *)length, 4, deadline))
		return agent_outcome(FAILED, path, " was lost before its answer", errno);
	document.size = (size_t)length[0] << 24 | (size_t)length[1] << 16 | (size_t)length[2] << 8 | length[3];
	if (document.size == 0 || document.size > ANSWER_LIMIT)
		return agent_outcome(FAILED, path, " has announced an answer of an impossible length", 0);
	document.at = malloc(document.size);
	if (document.at == NULL)
		out_of_memory();
	if (!receive(fd, document.at, document.size, deadline))
		return agent_outcome(FAILED, path, " was lost in the middle of its answer", errno);
	return parse_answer(&document, answer, path);
}

/* Whether an agent has been on this node since it booted: its lock file is beside its socket, in memory. */
static bool has_been_here(const char *path)
{
	struct text lock = {0};
	const char *slash = strrchr(path, '/');

	if (slash == NULL)
		return false;
	put(&lock, path, (size_t)(slash - path));
	append(&lock, "/agent.lock");
	put(&lock, "", 1);
	return access(lock.at, F_OK) == 0;
}

/*
 * For a call that no agent has run: asks again until the next agent is there, which replaces a pod's in a moment. NOT_RUN
 * at once where no agent has been on this node, or after RETURN_SECONDS, with what the last one was like as the reason.
 */
enum outcome ask_the_next(const char *path, const struct call *call, struct answer *answer)
{
	const struct timespec pause = {.tv_nsec = 50000000};
	struct timespec now;
	enum outcome outcome;

	if (!has_been_here(path))
		return NOT_RUN;
	clock_gettime(CLOCK_MONOTONIC, &now);
	time_t deadline = now.tv_sec + RETURN_SECONDS;
	do {
		nanosleep(&pause, NULL);
		outcome = ask(path, call, call->command, answer);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (outcome == NOT_RUN && now.tv_sec < deadline);
	if (outcome == NOT_RUN) {
		append(&reason, ", and none came back within ");
		append_number(&reason, RETURN_SECONDS);
		append(&reason, " s");
	}
	return outcome;
}

enum outcome ask(const char *path, const struct call *call, const char *command, struct answer *answer)
{
	enum outcome outcome;
	struct text request = {0};
	int fds[DESCRIPTORS];

	if (!open_descriptors(fds))
		return NOT_RUN;
	int fd = connect_to(path, &outcome);
	if (fd >= 0) {
		compose(&request, call, command, fds);
		outcome = exchange(fd, &request, fds, answer, path);
		free(request.at);
		close(fd);
	}
	close_descriptors(fds);
	return outcome;
}
