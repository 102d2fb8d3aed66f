/*
 * What does this machine's own C library make of a name?
 * Prints the outcome as evidence::Outcome has it, then the number of addresses.
 */
#define _GNU_SOURCE
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static const char *outcome(int code)
{
	switch (code) {
	case 0:
		return "addresses";
	case EAI_NONAME:
		return "noName";
#ifdef EAI_NODATA
	case EAI_NODATA:
		return "noData";
#endif
	case EAI_AGAIN:
		return "tryAgain";
	case EAI_FAIL:
		return "failed";
	default:
		return gai_strerror(code);
	}
}

int main(int argc, char **argv)
{
	/* No flags: without AI_ADDRCONFIG both families are asked for, even where only loopback is up. */
	struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM };
	struct addrinfo *list = NULL;
	int count = 0;

	if (argc != 2) {
		fprintf(stderr, "usage: getaddrinfo NAME\n");
		return 64;
	}
	int code = getaddrinfo(argv[1], NULL, &hints, &list);
	for (struct addrinfo *entry = list; entry; entry = entry->ai_next)
		count++;
	printf("%s %d\n", outcome(code), count);
	if (list)
		freeaddrinfo(list);
	return 0;
}
