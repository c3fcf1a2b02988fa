/* Without an agent: the process becomes the plugin's own executable. */
#include "launcher.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Tells the executable that the launcher becomes which process that is: execv keeps the process id. */
#define LAUNCHED "CNVNET_LAUNCHER_PID"
#define IS_A_LAUNCHER " is a launcher and not the plugin's executable"
#define REMEDY ": start cnvnet-agent on this node, or install cnvnet's executables in " PREFIX

static const char *own_number(void)
{
	static struct text number;

	number.size = 0;
	append_number(&number, (unsigned int)getpid());
	put(&number, "", 1);
	return number.at;
}

/* Sets the path of the plugin's executable beside this launcher: false if this launcher's own path is not known. */
static bool beside(struct text *path, const char *name)
{
	char self[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", self, sizeof self);
	const char *slash = length > 0 ? memrchr(self, '/', (size_t)length) : NULL;

	if (slash == NULL)
		return false;
	put(path, self, (size_t)(slash - self));
	append(path, "/cnvnet/bin/");
	append(path, name);
	put(path, "", 1);
	return true;
}

/* The same where scripts/install-cni puts it. */
static void installed(struct text *path, const char *name)
{
	path->size = 0;
	append(path, PREFIX "/bin/");
	append(path, name);
	put(path, "", 1);
}

/* Whether the plugin has an executable on this node. Where the agent is a pod there is none. */
bool has_executable(const char *name)
{
	struct text path = {0};

	if (beside(&path, name) && access(path.at, F_OK) == 0)
		return true;
	installed(&path, name);
	return access(path.at, F_OK) == 0;
}

/* Executes the plugin's executable. Returns only if it is not there or cannot be run. */
static void execute(const struct text *path, char **argv)
{
	struct stat target, self;

	/* A link to the launcher's own file would make it execute itself for ever. */
	if (stat(path->at, &target) == 0 && stat("/proc/self/exe", &self) == 0 && target.st_dev == self.st_dev &&
	    target.st_ino == self.st_ino) {
		errno = ELOOP;
		return;
	}
	setenv(LAUNCHED, own_number(), 1);
	argv[0] = path->at;
	execv(path->at, argv);
	unsetenv(LAUNCHED);
}

/* Executes the plugin's own executable, with a stdin that has all that was read again. */
_Noreturn void run_alone(const struct call *call, char **argv)
{
	struct text message = {0}, path = {0};

	if (call->input.at != NULL) {
		int again = memfd_create("stdin", MFD_CLOEXEC);
		if (again < 0 || !write_all(again, call->input.at, call->input.size) ||
		    lseek(again, 0, SEEK_SET) != 0 || dup2(again, STDIN_FILENO) < 0) {
			int error = errno;
			append(&message, "stdin for the plugin's executable: ");
			append_errno(&message, error);
			fail(IO_FAILURE, &message);
		}
	}
	/* Keep the executable from asking the agent again. A path stays: it also names the agent that serves guests. */
	if (strchr(variable("CNVNET_AGENT"), '/') == NULL)
		setenv("CNVNET_AGENT", "off", 1);
	if (beside(&path, call->name))
		execute(&path, argv);
	installed(&path, call->name);
	execute(&path, argv);

	int error = errno;
	append(&message, reason.size ? "" : "CNVNET_AGENT=off");
	put(&message, reason.at, reason.size);
	append(&message, ", and ");
	append(&message, path.at);
	if (error == ELOOP) {
		append(&message, IS_A_LAUNCHER);
	} else {
		append(&message, " cannot be run (");
		append_errno(&message, error);
		append(&message, ")");
	}
	append(&message, REMEDY);
	fail(TRY_AGAIN_LATER, &message);
}

/* Fails if this launcher was executed by a launcher: a copy in the executable's place would run for ever. */
void refuse_to_be_the_executable(struct call *call, const char *path)
{
	struct text message = {0};

	if (strcmp(variable(LAUNCHED), own_number()) != 0)
		return;
	read_call(call);
	append(&message, path);
	append(&message, IS_A_LAUNCHER REMEDY);
	fail(TRY_AGAIN_LATER, &message);
}
