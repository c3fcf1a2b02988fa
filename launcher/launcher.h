/* What the launcher's files share. DEFINES of the Makefile may set the values at the top. */
#ifndef CNV_LAUNCHER_H
#define CNV_LAUNCHER_H

#include <stdbool.h>
#include <stddef.h>

/* Where scripts/install-cni puts the Python executables. */
#ifndef PREFIX
#define PREFIX "/opt/cnvnet"
#endif
/* cnvnet's version: the Makefile reads it from the package. */
#ifndef RELEASE
#define RELEASE "unknown"
#endif
/* The protocol's version. */
#ifndef VERSION
#define VERSION "1"
#endif
/* How long the agent may take to accept the connection, how long to answer, and how long to come back. */
#ifndef CONNECT_SECONDS
#define CONNECT_SECONDS 10
#endif
#ifndef CALL_SECONDS
#define CALL_SECONDS 120
#endif
#ifndef RETURN_SECONDS
#define RETURN_SECONDS 20
#endif

/* Codes of the CNI spec, as in cnvnet.cni.errors. */
enum { IO_FAILURE = 5, TRY_AGAIN_LATER = 11, NOT_AVAILABLE = 50 };

/* Text that grows: `size` of `room` bytes are used. */
struct text {
	char *at;
	size_t size, room;
};

/* A part of another text; `at` is NULL where there is none. */
struct span {
	const char *at, *end;
};

struct call {
	const char *name, *command; /* the plugin's, and CNI_COMMAND */
	struct text input;	    /* stdin */
};

struct answer {
	int exit;
	struct text out, err;
};

enum outcome {
	ANSWERED,
	NOT_RUN, /* no agent was asked, or the agent has answered that it did nothing */
	FAILED,	 /* the request was sent, no answer came: the call may have been run or not */
};

/* text.c. Where memory is missing, all that append end the process with the spec's error object. */
_Noreturn void out_of_memory(void);
void reserve(struct text *text, size_t more);
void put(struct text *text, const char *data, size_t size);
void append(struct text *text, const char *string);
void append_number(struct text *text, unsigned int number);
void append_errno(struct text *text, int error);

/* json.c */
void append_json(struct text *text, const char *string, size_t size);
void append_base64(struct text *text, const char *data, size_t size);
bool member(struct span document, const char *key, struct span *value);
bool equals(struct span value, const char *literal);
bool read_base64(struct span value, struct text *text);
bool read_exit(struct span value, int *status);

/* process.c */
bool write_all(int fd, const char *data, size_t size);
_Noreturn void fail(unsigned int code, const struct text *message);
void occupy_standard_descriptors(void);
const char *variable(const char *name);
void read_call(struct call *call);

/* executable.c */
bool has_executable(const char *name);
_Noreturn void run_alone(const struct call *call, char **argv);
void refuse_to_be_the_executable(struct call *call, const char *path);

/* agent.c */
extern struct text reason; /* why the outcome is NOT_RUN or FAILED, for the error message */
bool agent_path(struct text *path);
enum outcome ask(const char *path, const struct call *call, const char *command, struct answer *answer);
enum outcome ask_the_next(const char *path, const struct call *call, struct answer *answer);

#endif
