/*
 * cnv-launch: hands one CNI call to the node's agent and prints what the agent answers.
 *
 * The protocol is in docs/agent-protocol.md. Without an agent the call is left to the plugin's own executable,
 * before anything of it has been sent; once a request is on its way the call is never run a second time.
 * VERSION needs neither: its answer is a constant.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* Where scripts/install-cni puts the Python executables. */
#ifndef PREFIX
#define PREFIX "/opt/cnvnet"
#endif
/* Of the protocol. */
#ifndef VERSION
#define VERSION "1"
#endif
/* How long the agent may be too busy to accept, and how long one whole call may take. */
#ifndef CONNECT_SECONDS
#define CONNECT_SECONDS 10
#endif
#ifndef CALL_SECONDS
#define CALL_SECONDS 120
#endif

#define RUNDIR "/run/cnvnet"
#define STDIN_LIMIT ((size_t)16 * 1024 * 1024)  /* cnvnet.cni.document.LIMIT */
#define ANSWER_LIMIT ((size_t)16 * 1024 * 1024) /* cnvnet.cni.forwarding.ANSWER_LIMIT */
#define NSFS 0x6e736673                         /* NSFS_MAGIC of linux/magic.h */

/* The answer to VERSION, as cnvnet.cni.about has it. */
#define CNI_VERSIONS \
	"{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[" \
	"\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"

/* For the file that is run in the agent's place: the number of this process, which that one keeps. */
#define LAUNCHED "CNVNET_LAUNCHER_PID"

/* Codes of the CNI spec, as in cnvnet.cni.errors. */
enum { IO_FAILURE = 5, TRY_AGAIN_LATER = 11, NOT_AVAILABLE = 50 };

enum { NETNS, SELF, MNT, ROOT, DESCRIPTORS };
static const char *const descriptor_names[DESCRIPTORS] = {"netns", "self", "mnt", "root"};

struct text {
	char *at;
	size_t size, room;
};

struct span {
	const char *at, *end;
};

struct call {
	const char *name, *command;
	struct text input; /* stdin */
};

struct answer {
	int exit;
	struct text out, err;
};

enum outcome {
	ANSWERED,
	NOT_RUN, /* nobody has been asked, or the agent has said that it has not done anything */
	FAILED,  /* there is an agent, but no answer of it, and nobody can say what became of the request */
};

extern char **environ;

static struct text reason; /* for NOT_RUN and FAILED, to be read by people */
static struct span config; /* what is on stdin, once it is read */

/* ---- text ---- */

static bool write_all(int fd, const char *data, size_t size);

static _Noreturn void out_of_memory(void)
{
	static const char told[] = "{\n    \"code\": 11,\n    \"msg\": \"no memory\"\n}";

	write_all(STDOUT_FILENO, told, sizeof told - 1);
	_exit(1);
}

static void reserve(struct text *text, size_t more)
{
	if (text->room - text->size >= more)
		return;
	size_t room = (text->size + more) + text->room;
	char *at = realloc(text->at, room);
	if (at == NULL)
		out_of_memory();
	text->at = at;
	text->room = room;
}

static void put(struct text *text, const char *data, size_t size)
{
	if (size == 0)
		return;
	reserve(text, size);
	memcpy(text->at + text->size, data, size);
	text->size += size;
}

static void say(struct text *text, const char *string)
{
	put(text, string, strlen(string));
}

static void say_number(struct text *text, unsigned int number)
{
	char digits[12];
	size_t first = sizeof digits;

	do
		digits[--first] = (char)('0' + number % 10);
	while (number /= 10);
	put(text, digits + first, sizeof digits - first);
}

/* The text of an error as Python's messages have it: in lower case. */
static void say_errno(struct text *text, int error)
{
	const char *string = strerror(error);

	for (; *string; string++) {
		char c = *string;
		if (c >= 'A' && c <= 'Z')
			c = (char)(c - 'A' + 'a');
		put(text, &c, 1);
	}
}

/* ---- JSON, written ---- */

/* How many bytes the UTF-8 sequence at `at` has, 0 if it is none (RFC 3629: no overlong form, no surrogate). */
static size_t sequence(const unsigned char *at, const unsigned char *end)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t length;

	if (*at < 0x80)
		return 1;
	if (*at >= 0xc2 && *at <= 0xdf) {
		length = 2;
	} else if ((*at & 0xf0) == 0xe0) {
		length = 3;
		if (*at == 0xe0)
			low = 0xa0;
		if (*at == 0xed)
			high = 0x9f;
	} else if (*at >= 0xf0 && *at <= 0xf4) {
		length = 4;
		if (*at == 0xf0)
			low = 0x90;
		if (*at == 0xf4)
			high = 0x8f;
	} else {
		return 0;
	}
	if ((size_t)(end - at) < length || at[1] < low || at[1] > high)
		return 0;
	for (size_t i = 2; i < length; i++)
		if ((at[i] & 0xc0) != 0x80)
			return 0;
	return length;
}

/* A JSON string. A byte that is no UTF-8 becomes \udcXX: so Python's surrogateescape has it, and gives it back. */
static void say_json(struct text *text, const char *string, size_t size)
{
	static const char hex[] = "0123456789abcdef";
	const unsigned char *at = (const unsigned char *)string, *end = at + size;

	say(text, "\"");
	while (at < end) {
		size_t length = sequence(at, end);
		if (length == 0 || *at < 0x20 || *at == '"' || *at == '\\') {
			const char *front = length == 0 ? "\\udc" : "\\u00";
			char digits[2] = {hex[*at >> 4], hex[*at & 15]};
			say(text, front);
			put(text, digits, 2);
			at++;
		} else {
			put(text, (const char *)at, length);
			at += length;
		}
	}
	say(text, "\"");
}

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void say_base64(struct text *text, const char *data, size_t size)
{
	const unsigned char *at = (const unsigned char *)data;

	reserve(text, size / 3 * 4 + 4);
	for (size_t left = size; left > 0;) {
		size_t taken = left < 3 ? left : 3;
		unsigned int bits = (unsigned int)at[0] << 16;
		if (taken > 1)
			bits |= (unsigned int)at[1] << 8;
		if (taken > 2)
			bits |= at[2];
		char four[4] = {alphabet[bits >> 18], alphabet[bits >> 12 & 63], alphabet[bits >> 6 & 63],
				alphabet[bits & 63]};
		if (taken < 3)
			four[3] = '=';
		if (taken < 2)
			four[2] = '=';
		put(text, four, 4);
		at += taken;
		left -= taken;
	}
}

/* ---- JSON, read: as much of it as an answer has ---- */

static const char *skip_space(struct span rest)
{
	while (rest.at < rest.end && strchr(" \t\r\n", *rest.at) != NULL && *rest.at)
		rest.at++;
	return rest.at;
}

/* Behind the string that begins at `rest`; NULL if it has no end. */
static const char *skip_string(struct span rest)
{
	for (rest.at++; rest.at < rest.end; rest.at++) {
		if (*rest.at == '"')
			return rest.at + 1;
		if (*rest.at == '\\' && rest.end - rest.at > 1)
			rest.at++;
	}
	return NULL;
}

static bool in_literal(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == '-' || c == '+' || c == '.' || c == 'E';
}

/* Behind the value that begins at `rest`; NULL if there is none. */
static const char *skip_value(struct span rest)
{
	size_t depth = 0;

	do {
		rest.at = skip_space(rest);
		if (rest.at == rest.end)
			return NULL;
		char c = *rest.at;
		if (c == '"') {
			if ((rest.at = skip_string(rest)) == NULL)
				return NULL;
		} else if (c == '{' || c == '[') {
			depth++;
			rest.at++;
		} else if (depth > 0 && (c == '}' || c == ']')) {
			depth--;
			rest.at++;
		} else if (depth > 0 && (c == ',' || c == ':')) {
			rest.at++;
		} else if (in_literal(c)) {
			while (rest.at < rest.end && in_literal(*rest.at))
				rest.at++;
		} else {
			return NULL;
		}
	} while (depth > 0);
	return rest.at;
}

/*
 * Whether the document is an object; `value` is then what its member `key` holds, or empty.
 * The last one counts where a key is repeated, as in Python and Go.
 */
static bool member(struct span document, const char *key, struct span *value)
{
	struct span rest = document;
	size_t length = strlen(key);
	bool first = true;

	*value = (struct span){NULL, NULL};
	rest.at = skip_space(rest);
	if (rest.at == rest.end || *rest.at++ != '{')
		return false;
	for (;; first = false) {
		rest.at = skip_space(rest);
		if (first && rest.at < rest.end && *rest.at == '}')
			break;
		if (rest.at == rest.end || *rest.at != '"')
			return false;
		const char *name = rest.at + 1;
		if ((rest.at = skip_string(rest)) == NULL)
			return false;
		bool wanted = (size_t)(rest.at - 1 - name) == length && memcmp(name, key, length) == 0;
		rest.at = skip_space(rest);
		if (rest.at == rest.end || *rest.at++ != ':')
			return false;
		const char *begin = skip_space(rest);
		if ((rest.at = skip_value(rest)) == NULL)
			return false;
		if (wanted)
			*value = (struct span){begin, rest.at};
		rest.at = skip_space(rest);
		if (rest.at == rest.end)
			return false;
		if (*rest.at == '}')
			break;
		if (*rest.at++ != ',')
			return false;
	}
	rest.at++;
	return skip_space(rest) == rest.end;
}

static bool is(struct span value, const char *literal)
{
	size_t length = strlen(literal);

	return (size_t)(value.end - value.at) == length && memcmp(value.at, literal, length) == 0;
}

static int digit_of(char c)
{
	const char *found = c ? strchr(alphabet, c) : NULL;

	return found == NULL ? -1 : (int)(found - alphabet);
}

/* What a JSON string in base64 stands for. */
static bool read_base64(struct span value, struct text *text)
{
	if (value.end - value.at < 2 || *value.at != '"' || (value.end - value.at - 2) % 4 != 0)
		return false;
	const char *end = value.end - 1;
	for (const char *at = value.at + 1; at < end; at += 4) {
		int padding = at + 4 < end || at[3] != '=' ? 0 : at[2] != '=' ? 1 : 2;
		int32_t bits = 0;
		for (int i = 0; i < 4; i++) {
			int digit = i >= 4 - padding ? 0 : digit_of(at[i]);
			if (digit < 0)
				return false;
			bits = bits << 6 | digit;
		}
		char three[3] = {(char)(bits >> 16 & 255), (char)(bits >> 8 & 255), (char)(bits & 255)};
		put(text, three, (size_t)(3 - padding));
	}
	return true;
}

static bool read_exit(struct span value, int *status)
{
	*status = 0;
	if (value.at == value.end || value.end - value.at > 3)
		return false;
	for (; value.at < value.end; value.at++) {
		if (*value.at < '0' || *value.at > '9')
			return false;
		*status = *status * 10 + (*value.at - '0');
	}
	return *status <= 255;
}

/* ---- the process ---- */

static void wait_for(int fd, short events)
{
	struct pollfd one = {.fd = fd, .events = events};

	poll(&one, 1, -1);
}

/* Whether all of it was taken. The caller may share a pipe with us that does not block. */
static bool write_all(int fd, const char *data, size_t size)
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

/* The configuration's version, where it is one that can be printed as it is; else empty. */
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

/* Ends with the spec's error object, laid out as cnvnet.cni.document writes it. */
static _Noreturn void fail(unsigned int code, const struct text *message)
{
	struct text document = {0};
	struct span version = config_version();

	say(&document, "{\n");
	if (version.at != NULL) {
		say(&document, "    \"cniVersion\": ");
		say_json(&document, version.at, (size_t)(version.end - version.at));
		say(&document, ",\n");
	}
	say(&document, "    \"code\": ");
	say_number(&document, code);
	say(&document, ",\n    \"msg\": ");
	say_json(&document, message->at, message->size);
	say(&document, "\n}");
	signal(SIGPIPE, SIG_IGN);
	write_all(STDOUT_FILENO, document.at, document.size);
	_exit(1);
}

/* A caller may have closed any of the three; the agent's socket must not get the number of one. */
static void occupy_standard_descriptors(void)
{
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
			open("/", O_RDONLY); /* inside a bare chroot; neither readable nor writable, but taken */
}

/* The plugin that is meant by the name this file was called by. */
static const char *plugin_called(const char *path)
{
	static const char *const names[] = {"cnv-bridge", "masquerade", "vm-bridge", "static-ip"};
	const char *slash = path == NULL ? NULL : strrchr(path, '/');
	const char *name = slash != NULL ? slash + 1 : path == NULL ? "" : path;
	struct text message = {0};

	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (strcmp(name, names[i]) == 0)
			return names[i];
	if (strcmp(name, "bridge") == 0)
		return names[0];
	say(&message, "called as ");
	say(&message, name);
	say(&message, ": this file must be called cnv-bridge, masquerade, vm-bridge or static-ip, or bridge for the first");
	fail(NOT_AVAILABLE, &message);
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
				say(&message, "error reading from stdin: more than ");
				say_number(&message, (unsigned int)STDIN_LIMIT);
				say(&message, " bytes");
				fail(IO_FAILURE, &message);
			}
		} else if (errno == EAGAIN) {
			wait_for(STDIN_FILENO, POLLIN);
		} else if (errno != EINTR) {
			int error = errno;
			say(&message, "error reading from stdin: read /dev/stdin: ");
			say_errno(&message, error);
			fail(IO_FAILURE, &message);
		}
	}
}

static const char *variable(const char *name)
{
	const char *value = getenv(name);

	return value == NULL ? "" : value;
}

/* All of stdin, unless nobody will want to know it. */
static void read_call(struct call *call)
{
	if (!*call->command || strcmp(call->command, "VERSION") == 0)
		return;
	read_stdin(&call->input);
	config = (struct span){call->input.at, call->input.at + call->input.size};
}

/* ---- without the agent ---- */

#define IS_A_LAUNCHER " is a launcher and not the plugin's executable"
#define REMEDY ": start cnvnet-agent on this node, or install cnvnet's executables in " PREFIX

static const char *own_number(void)
{
	static struct text number;

	number.size = 0;
	say_number(&number, (unsigned int)getpid());
	put(&number, "", 1);
	return number.at;
}

/* One place where the plugin's executable may be. Comes back only if it is not there or cannot be run. */
static void become(struct text *path, const char *name, char **argv)
{
	struct stat there, self;

	say(path, "/bin/");
	say(path, name);
	put(path, "", 1);
	/* A link to this very file would have it call itself for ever. */
	if (stat(path->at, &there) == 0 && stat("/proc/self/exe", &self) == 0 && there.st_dev == self.st_dev &&
	    there.st_ino == self.st_ino) {
		errno = ELOOP;
		return;
	}
	setenv(LAUNCHED, own_number(), 1);
	argv[0] = path->at;
	execv(path->at, argv);
	unsetenv(LAUNCHED);
}

/* Leaves the call to the plugin's own executable, with what has been read of stdin before it again. */
static _Noreturn void run_alone(const struct call *call, char **argv)
{
	struct text message = {0}, path = {0};
	char self[PATH_MAX];
	ssize_t length;

	if (call->input.at != NULL) {
		int again = memfd_create("stdin", MFD_CLOEXEC);
		if (again < 0 || !write_all(again, call->input.at, call->input.size) ||
		    lseek(again, 0, SEEK_SET) != 0 || dup2(again, STDIN_FILENO) < 0) {
			int error = errno;
			say(&message, "stdin for the plugin's executable: ");
			say_errno(&message, error);
			fail(IO_FAILURE, &message);
		}
	}
	/* The executable would ask the agent again. A path stays: it also says who serves the guests. */
	if (strchr(variable("CNVNET_AGENT"), '/') == NULL)
		setenv("CNVNET_AGENT", "off", 1);
	length = readlink("/proc/self/exe", self, sizeof self);
	const char *slash = length > 0 ? memrchr(self, '/', (size_t)length) : NULL;
	if (slash != NULL) {
		put(&path, self, (size_t)(slash - self));
		say(&path, "/cnvnet");
		become(&path, call->name, argv);
		path.size = 0;
	}
	say(&path, PREFIX);
	become(&path, call->name, argv);

	int error = errno;
	say(&message, reason.size ? "" : "CNVNET_AGENT=off");
	put(&message, reason.at, reason.size);
	say(&message, ", and ");
	say(&message, path.at);
	if (error == ELOOP) {
		say(&message, IS_A_LAUNCHER);
	} else {
		say(&message, " cannot be run (");
		say_errno(&message, error);
		say(&message, ")");
	}
	say(&message, REMEDY);
	fail(TRY_AGAIN_LATER, &message);
}

/* A copy where the executable should be would run itself, or another one, for ever. */
static void refuse_to_be_the_executable(struct call *call, const char *path)
{
	struct text message = {0};

	if (strcmp(variable(LAUNCHED), own_number()) != 0)
		return;
	read_call(call);
	say(&message, path);
	say(&message, IS_A_LAUNCHER REMEDY);
	fail(TRY_AGAIN_LATER, &message);
}

/* ---- with the agent ---- */

static void give_reason(const char *what, int error)
{
	reason.size = 0;
	say(&reason, what);
	if (error != 0) {
		say(&reason, " (");
		say_errno(&reason, error);
		say(&reason, ")");
	}
}

static enum outcome about_agent(enum outcome outcome, const char *path, const char *what, int error)
{
	struct text text = {0};

	say(&text, "the agent at ");
	say(&text, path);
	say(&text, what);
	put(&text, "", 1);
	give_reason(text.at, error);
	return outcome;
}

/* The path of the agent's socket; false if the caller wants none. */
static bool agent_path(struct text *path)
{
	const char *named = variable("CNVNET_AGENT"), *folder = variable("CNVNET_RUNDIR");

	if (strcmp(named, "off") == 0)
		return false;
	if (strchr(named, '/') != NULL) {
		say(path, named);
	} else {
		say(path, *folder ? folder : RUNDIR);
		say(path, "/agent.sock");
	}
	put(path, "", 1);
	return true;
}

/* The namespace a call is about: -1 if there is none, -2 if this process could not open it. */
static int open_netns(void)
{
	struct statfs kind;
	/* Whatever the path leads to, opening it must neither wait nor make a terminal ours. */
	int fd = open(variable("CNI_NETNS"), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return errno == EMFILE || errno == ENFILE || errno == ENOMEM ? -2 : -1;
	if (fstatfs(fd, &kind) == 0 && (unsigned long)kind.f_type == NSFS)
		return fd;
	close(fd); /* a plain file where a namespace was mounted once */
	return -1;
}

static void close_descriptors(const int *fds)
{
	for (int i = 0; i < DESCRIPTORS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* All but the call's own namespace are needed: without them the agent cannot know whose call it is. */
static bool open_descriptors(int *fds)
{
	fds[SELF] = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	fds[MNT] = open("/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC);
	fds[ROOT] = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	fds[NETNS] = -1;
	if (fds[SELF] >= 0 && fds[MNT] >= 0 && fds[ROOT] >= 0 && (fds[NETNS] = open_netns()) >= -1)
		return true;
	give_reason("this process' own namespaces in /proc cannot be opened", errno);
	close_descriptors(fds);
	return false;
}

/* A connected socket, or -1 and the outcome. */
static int connect_to(const char *path, enum outcome *outcome)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	/* For as long connect() waits where more callers than the agent's backlog holds are before us. */
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
			if (error == 0)
				return fd;
			close(fd);
		} else {
			error = errno;
		}
	}
	if (error == EAGAIN) {
		*outcome = about_agent(FAILED, path, " is too busy to take the call", 0);
	} else {
		about_agent(NOT_RUN, path, " is not there", error);
	}
	return -1;
}

static bool forwarded(const char *entry)
{
	return strncmp(entry, "CNI_", 4) == 0 || strncmp(entry, "CNVNET_", 7) == 0 ||
	       strncmp(entry, "TRACEPARENT=", 12) == 0;
}

/* The whole request; `command` stands for the CNI_COMMAND of the environment. */
static void compose(struct text *request, const struct call *call, const char *command, const int *fds)
{
	size_t last = 0;
	bool first = true;

	put(request, "\0\0\0\0", 4);
	say(request, "{\"v\":" VERSION ",\"argv0\":");
	say_json(request, call->name, strlen(call->name));
	say(request, ",\"fds\":[");
	for (int i = 0; i < DESCRIPTORS; i++) {
		if (fds[i] < 0)
			continue;
		say(request, first ? "" : ",");
		say_json(request, descriptor_names[i], strlen(descriptor_names[i]));
		first = false;
	}
	say(request, "],\"env\":{");
	while (environ[last] != NULL)
		last++;
	first = true;
	/* Backwards: of a variable that is there twice the first one counts here, and in JSON the last. */
	while (last-- > 0) {
		const char *entry = environ[last], *equals = strchr(entry, '=');
		if (equals == NULL || !forwarded(entry) || strncmp(entry, "CNI_COMMAND=", 12) == 0)
			continue;
		say(request, first ? "" : ",");
		say_json(request, entry, (size_t)(equals - entry));
		say(request, ":");
		say_json(request, equals + 1, strlen(equals + 1));
		first = false;
	}
	if (*command) {
		say(request, first ? "\"CNI_COMMAND\":" : ",\"CNI_COMMAND\":");
		say_json(request, command, strlen(command));
	}
	say(request, "},\"stdin\":\"");
	say_base64(request, call->input.at, call->input.size);
	say(request, "\"}");
	size_t size = request->size - 4;
	for (int i = 0; i < 4; i++)
		request->at[i] = (char)(size >> (24 - 8 * i) & 255);
}

/* Waits until the socket is ready for it, or the call's time is over: then false, with ETIMEDOUT. */
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
	message.msg_controllen = CMSG_SPACE(count * sizeof(int));
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
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

/* Exactly so many bytes; false otherwise, with errno 0 where the agent has hung up. */
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

static enum outcome understand(const struct text *document, struct answer *answer, const char *path)
{
	const struct span whole = {document->at, document->at + document->size};
	struct span v, unsupported, status, out, err;

	if (!member(whole, "unsupported", &unsupported) || !member(whole, "v", &v) ||
	    !member(whole, "exit", &status) || !member(whole, "stdout", &out) || !member(whole, "stderr", &err))
		return about_agent(FAILED, path, " has answered what is no JSON object", 0);
	if (is(unsupported, "true"))
		return about_agent(NOT_RUN, path, " does not run such calls", 0);
	if (!is(v, VERSION) || !read_exit(status, &answer->exit) || !read_base64(out, &answer->out) ||
	    !read_base64(err, &answer->err))
		return about_agent(FAILED, path, " has answered what is no answer to a call", 0);
	return ANSWERED;
}

/* One request and its answer on a connected socket. */
static enum outcome exchange(int fd, const struct text *request, const int *fds, struct answer *answer,
			     const char *path)
{
	struct text document = {0};
	unsigned char length[4];
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	time_t deadline = now.tv_sec + CALL_SECONDS;
	if (!send_all(fd, request, fds, deadline))
		return about_agent(FAILED, path, " was lost while the call was sent", errno);
	if (!receive(fd, (char *)length, 4, deadline))
		return about_agent(FAILED, path, " was lost before its answer", errno);
	document.size = (size_t)length[0] << 24 | (size_t)length[1] << 16 | (size_t)length[2] << 8 | length[3];
	if (document.size == 0 || document.size > ANSWER_LIMIT)
		return about_agent(FAILED, path, " has announced an answer of an impossible length", 0);
	document.at = malloc(document.size);
	if (document.at == NULL)
		out_of_memory();
	if (!receive(fd, document.at, document.size, deadline))
		return about_agent(FAILED, path, " was lost in the middle of its answer", errno);
	return understand(&document, answer, path);
}

static enum outcome ask(const char *path, const struct call *call, const char *command, struct answer *answer)
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
		close(fd);
	}
	close_descriptors(fds);
	return outcome;
}

/* Undoes an ADD whose result nobody could be told, by the DEL that the runtime should send now. */
static void take_back(const char *path, const struct call *call)
{
	struct text told = {0};
	struct answer answer = {0};

	say(&told, call->name);
	say(&told, ": the result cannot be written: deleting what it tells of\n");
	if (ask(path, call, "DEL", &answer) == ANSWERED) {
		put(&told, answer.err.at, answer.err.size);
	} else {
		say(&told, call->name);
		say(&told, ": ");
		put(&told, reason.at, reason.size);
		say(&told, "\n");
	}
	write_all(STDERR_FILENO, told.at, told.size);
}

static int deliver(const char *path, const struct call *call, const struct answer *answer)
{
	signal(SIGPIPE, SIG_IGN);
	bool told = write_all(STDOUT_FILENO, answer->out.at, answer->out.size);
	write_all(STDERR_FILENO, answer->err.at, answer->err.size);
	if (told)
		return answer->exit;
	if (answer->exit == 0 && strcmp(call->command, "ADD") == 0)
		take_back(path, call);
	return 1;
}

int main(int argc, char **argv)
{
	struct call call = {0};
	struct answer answer = {0};
	struct text path = {0};

	occupy_standard_descriptors();
	call.name = plugin_called(argc > 0 ? argv[0] : NULL);
	call.command = variable("CNI_COMMAND");
	refuse_to_be_the_executable(&call, argv[0]);
	if (strcmp(call.command, "VERSION") == 0) {
		say(&answer.out, CNI_VERSIONS);
		_exit(deliver("", &call, &answer));
	}
	if (!agent_path(&path))
		run_alone(&call, argv);
	/* Before connecting: a caller that is slow to write must not hold up one of the agent's workers. */
	read_call(&call);
	switch (ask(path.at, &call, call.command, &answer)) {
	case ANSWERED:
		_exit(deliver(path.at, &call, &answer));
	case NOT_RUN:
		run_alone(&call, argv);
	case FAILED:
	default:
		fail(TRY_AGAIN_LATER, &reason);
	}
}
