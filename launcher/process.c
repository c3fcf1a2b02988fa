/* What a call needs of its process: its descriptors, environment and stdin, and the error object. */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STDIN_LIMIT ((size_t)16 * 1024 * 1024) /* cnvnet.cni.document.LIMIT */

static struct span config; /* all of stdin, when it has been read */

static void wait_for(int fd, short events)
{
	struct pollfd one = {.fd = fd, .events = events};

	poll(&one, 1, -1);
}

/* Writes all of it; false on an error. The pipe may be non-blocking, as its other users may have set it so. */
bool write_all(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);
		if (n >= 0) {
			data += n;
			size -= (size_t)n;
		} else if (errno == EAGAIN) {
			wait_for(fd, POLLOUT);
		} else if (errno != EINTR) {
			return false;
		}
	}
	return true;
}

/* The configuration's cniVersion as it stands there; empty if it is no string or has escapes. */
static struct span config_version(void)
{
	struct span value = {NULL, NULL};

	if (!member(config, "cniVersion", &value) || value.end - value.at < 3 || value.end - value.at > 18 ||
	    *value.at != '"')
		return (struct span){NULL, NULL};
	value.at++;
	value.end--;
	for (const char *at = value.at; at < value.end; at++)
		if ((*at < '0' || *at > '9') && *at != '.')
			return (struct span){NULL, NULL};
	return value;
}

/* Prints the spec's error object, laid out as cnvnet.cni.document does, and exits with status 1. */
_Noreturn void fail(unsigned int code, const struct text *message)
{
	struct text document = {0};
	struct span version = config_version();

	append(&document, "{\n");
	if (version.at != NULL) {
		append(&document, "    \"cniVersion\": ");
		append_json(&document, version.at, (size_t)(version.end - version.at));
		append(&document, ",\n");
	}
	append(&document, "    \"code\": ");
	append_number(&document, code);
	append(&document, ",\n    \"msg\": ");
	append_json(&document, message->at, message->size);
	append(&document, "\n}");
	signal(SIGPIPE, SIG_IGN);
	write_all(STDOUT_FILENO, document.at, document.size);
	_exit(1);
}

/* Opens those of 0, 1, 2 that the caller has closed, so that the agent's socket does not execute stdout. */
void occupy_standard_descriptors(void)
{
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
			open("/", O_RDONLY); /* inside a bare chroot; neither readable nor writable, but taken */
}

static void read_stdin(struct text *input)
{
	struct text message = {0};

	for (;;) {
		reserve(input, 4096);
		size_t room = input->room - input->size;
		ssize_t n = read(STDIN_FILENO, input->at + input->size, room);
		if (n == 0)
			return;
		if (n > 0) {
			input->size += (size_t)n;
			if (input->size > STDIN_LIMIT) {
				append(&message, "error reading from stdin: more than ");
				append_number(&message, (unsigned int)STDIN_LIMIT);
				append(&message, " bytes");
				fail(IO_FAILURE, &message);
			}
		} else if (errno == EAGAIN) {
			wait_for(STDIN_FILENO, POLLIN);
		} else if (errno != EINTR) {
			int error = errno;
			append(&message, "error reading from stdin: read /dev/stdin: ");
			append_errno(&message, error);
			fail(IO_FAILURE, &message);
		}
	}
}

const char *variable(const char *name)
{
	const char *value = getenv(name);

	return value == NULL ? "" : value;
}

/* Reads all of stdin, except where no step needs it: without CNI_COMMAND, and for VERSION. */
void read_call(struct call *call)
{
	if (!*call->command || strcmp(call->command, "VERSION") == 0)
		return;
	read_stdin(&call->input);
	config = (struct span){call->input.at, call->input.at + call->input.size};
}
