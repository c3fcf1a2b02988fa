/*
 * cnv-launch: hands one CNI call to the node's agent and prints what the agent answers.
 *
 * The protocol is in docs/agent-protocol.md. Without an agent the launcher executes the plugin's own executable. Once
 * the first byte of a request is sent, the launcher never runs the call a second time. VERSION needs neither agent nor
 * executable: its answer is a constant.
 */
#include "launcher.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

/* The answer to VERSION, as cnvnet.cni.about has it. */
#define CNI_VERSIONS \
	"{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[" \
	"\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"

struct plugin {
	const char *name, *does;
};

/* As cnvnet.launch.usage describes them. */
static const struct plugin plugins[] = {
	{"cnv-bridge", "attaches virtual machines and containers to a bridge of the node"},
	{"cnv-tuning", "sets sysctls and properties of a pod's interface"},
	{"masquerade", "puts a virtual machine behind the addresses of its pod"},
	{"vm-bridge", "puts a virtual machine in the place of its pod"},
	{"static-ip", "manages addresses that belong to virtual machines"},
};
#define PLUGINS (sizeof plugins / sizeof *plugins)
/* Other names of plugins: those that no other program has, and those of the reference plugins. */
static const struct {
	const char *name;
	const struct plugin *plugin;
} other_names[] = {
	{"cnvnet-bridge", &plugins[0]},
	{"bridge", &plugins[0]},
	{"cnvnet-tuning", &plugins[1]},
	{"tuning", &plugins[1]},
};

/* scripts/install-cni finds these words in a launcher of any version, and in no other program. */
#define MUST_BE_CALLED ": this file must be called cnv-bridge, "

/* The plugin whose name, or other name, is the last part of argv[0]; NULL if there is none. */
static const struct plugin *plugin_called(const char *path)
{
	const char *slash = path == NULL ? NULL : strrchr(path, '/');
	const char *name = slash != NULL ? slash + 1 : path == NULL ? "" : path;
	struct text message = {0};

	for (size_t i = 0; i < PLUGINS; i++)
		if (strcmp(name, plugins[i].name) == 0)
			return &plugins[i];
	for (size_t i = 0; i < sizeof other_names / sizeof *other_names; i++)
		if (strcmp(name, other_names[i].name) == 0)
			return other_names[i].plugin;
	append(&message, "called as ");
	append(&message, name);
	append(&message, MUST_BE_CALLED "cnv-tuning, masquerade, vm-bridge or static-ip");
	fail(NOT_AVAILABLE, &message);
}

/* The same text as in cnvnet.launch.usage. */
static const char usage[] =
	"A container runtime runs it (Multus, containerd, CRI-O; manually: cnitool). CNI_COMMAND and the other\n"
	"variables CNI_* say what to do, the network's configuration comes on stdin, the result goes to stdout.\n"
	"The configuration's keys: docs/";
static const char installed_docs[] = ".md, which an installation has in share/doc/cnvnet.\n";

static bool matches(const char *argument, const char *one, const char *other)
{
	return strcmp(argument, one) == 0 || strcmp(argument, other) == 0;
}

static _Noreturn void print(int fd, const struct text *text, int status)
{
	signal(SIGPIPE, SIG_IGN);
	_exit(write_all(fd, text->at, text->size) ? status : 1);
}

/* --help, --version and all other arguments: a person has started this, for runtimes give no arguments. */
static _Noreturn void describe(const struct plugin *plugin, const char *argument)
{
	struct text text = {0};

	append(&text, plugin->name);
	if (matches(argument, "--help", "-h")) {
		append(&text, ": a CNI plugin that ");
		append(&text, plugin->does);
		append(&text, ".\n\n");
		append(&text, usage);
		append(&text, plugin->name);
		append(&text, installed_docs);
		print(STDOUT_FILENO, &text, 0);
	}
	if (matches(argument, "--version", "-V")) {
		append(&text, " " RELEASE " (launcher)\n");
		print(STDOUT_FILENO, &text, 0);
	}
	append(&text, ": ");
	append(&text, argument);
	append(&text, ": no such option (--help, --version); calls come in CNI_COMMAND and on stdin\n");
	print(STDERR_FILENO, &text, 2);
}

/* Undoes an ADD whose result could not be written to stdout: sends the DEL that the runtime would send. */
static void undo_add(const char *path, const struct call *call)
{
	struct text report = {0};
	struct answer answer = {0};

	append(&report, call->name);
	append(&report, ": the result cannot be written: undoing the ADD\n");
	if (ask(path, call, "DEL", &answer) == ANSWERED) {
		put(&report, answer.err.at, answer.err.size);
	} else {
		append(&report, call->name);
		append(&report, ": ");
		put(&report, reason.at, reason.size);
		append(&report, "\n");
	}
	write_all(STDERR_FILENO, report.at, report.size);
}

static int print_answer(const char *path, const struct call *call, const struct answer *answer)
{
	signal(SIGPIPE, SIG_IGN);
	bool written = write_all(STDOUT_FILENO, answer->out.at, answer->out.size);
	write_all(STDERR_FILENO, answer->err.at, answer->err.size);
	if (written)
		return answer->exit;
	if (answer->exit == 0 && strcmp(call->command, "ADD") == 0)
		undo_add(path, call);
	return 1;
}

int main(int argc, char **argv)
{
	struct call call = {0};
	struct answer answer = {0};
	struct text path = {0};
	const struct plugin *plugin;

	occupy_standard_descriptors();
	plugin = plugin_called(argc > 0 ? argv[0] : NULL);
	call.name = plugin->name;
	call.command = variable("CNI_COMMAND");
	if (!*call.command && argc > 1)
		describe(plugin, argv[1]);
	refuse_to_be_the_executable(&call, argv[0]);
	if (strcmp(call.command, "VERSION") == 0) {
		append(&answer.out, CNI_VERSIONS);
		_exit(print_answer("", &call, &answer));
	}
	if (!agent_path(&path))
		run_alone(&call, argv);
	/* Before connecting: a caller that is slow to write must not hold up one of the agent's workers. */
	read_call(&call);
	enum outcome outcome = ask(path.at, &call, call.command, &answer);
	if (outcome == NOT_RUN && !has_executable(call.name))
		outcome = ask_the_next(path.at, &call, &answer);
	switch (outcome) {
	case ANSWERED:
		_exit(print_answer(path.at, &call, &answer));
	case NOT_RUN:
		run_alone(&call, argv);
	case FAILED:
	default:
		fail(TRY_AGAIN_LATER, &reason);
	}
}
