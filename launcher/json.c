/* As much JSON as a request and an answer have: written and read without a library, and base64. */
#include "launcher.h"

#include <stdint.h>
#include <string.h>

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
void append_json(struct text *text, const char *string, size_t size)
{
	static const char hex[] = "0123456789abcdef";
	const unsigned char *at = (const unsigned char *)string, *end = at + size;

	append(text, "\"");
	while (at < end) {
		size_t length = sequence(at, end);
		if (length == 0 || *at < 0x20 || *at == '"' || *at == '\\') {
			const char *front = length == 0 ? "\\udc" : "\\u00";
			char digits[2] = {hex[*at >> 4], hex[*at & 15]};
			append(text, front);
			put(text, digits, 2);
			at++;
		} else {
			put(text, (const char *)at, length);
			at += length;
		}
	}
	append(text, "\"");
}

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void append_base64(struct text *text, const char *data, size_t size)
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
bool member(struct span document, const char *key, struct span *value)
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

bool equals(struct span value, const char *literal)
{
	size_t length = strlen(literal);

	return (size_t)(value.end - value.at) == length && memcmp(value.at, literal, length) == 0;
}

static int digit_of(char c)
{
	const char *position = c ? strchr(alphabet, c) : NULL;

	return position == NULL ? -1 : (int)(position - alphabet);
}

/* Decodes a JSON string that holds base64; false if it is none. */
bool read_base64(struct span value, struct text *text)
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

bool read_exit(struct span value, int *status)
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
