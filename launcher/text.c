/* Text that grows: appended to, never freed, for the process ends after one call. */
#include "launcher.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Noreturn void out_of_memory(void)
{
	static const char document[] = "{\n    \"code\": 11,\n    \"msg\": \"no memory\"\n}";

	write_all(STDOUT_FILENO, document, sizeof document - 1);
	_exit(1);
}

void reserve(struct text *text, size_t more)
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

void put(struct text *text, const char *data, size_t size)
{
	if (size == 0)
		return;
	reserve(text, size);
	memcpy(text->at + text->size, data, size);
	text->size += size;
}

void append(struct text *text, const char *string)
{
	put(text, string, strlen(string));
}

void append_number(struct text *text, unsigned int number)
{
	char digits[12];
	size_t first = sizeof digits;

	do
		digits[--first] = (char)('0' + number % 10);
	while (number /= 10);
	put(text, digits + first, sizeof digits - first);
}

/* The text of an errno, in lower case as in the Python launcher's messages. */
void append_errno(struct text *text, int error)
{
	/* The libraries word this one differently, and the Python launcher says it so. */
	const char *string = error == ETIMEDOUT ? "timed out" : strerror(error);

	for (; *string; string++) {
		char c = *string;
		if (c >= 'A' && c <= 'Z')
			c = (char)(c - 'A' + 'a');
		put(text, &c, 1);
	}
}
