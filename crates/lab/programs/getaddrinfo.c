/* What does a real C library's getaddrinfo say, and how long does it take?
 *
 *   getaddrinfo NAME [--rate N per second] [--count N] [--threads K]
 *
 * One line for each lookup, at its end: start (nanoseconds of the wall clock), duration (nanoseconds), result
 * (OK, EAI_AGAIN, ...), number of IPv4 addresses, number of IPv6 addresses. With --rate lookups start on
 * schedule as long as a thread is free; without --count they go on for ever. */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static const char *name;
static double rate;
static long count;
static atomic_long next_lookup;
static struct timespec begin;

static int64_t now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static const char *result(int code)
{
	switch (code) {
	case 0: return "OK";
	case EAI_AGAIN: return "EAI_AGAIN";
	case EAI_FAIL: return "EAI_FAIL";
	case EAI_NONAME: return "EAI_NONAME";
#ifdef EAI_NODATA
	case EAI_NODATA: return "EAI_NODATA";
#endif
	case EAI_MEMORY: return "EAI_MEMORY";
	case EAI_SERVICE: return "EAI_SERVICE";
	case EAI_FAMILY: return "EAI_FAMILY";
	case EAI_SYSTEM: return "EAI_SYSTEM";
	default: return "EAI_OTHER";
	}
}

static void wait_for_turn(long lookup)
{
	int64_t at = begin.tv_sec * INT64_C(1000000000) + begin.tv_nsec + (int64_t)(lookup * 1e9 / rate);
	struct timespec until = { at / 1000000000, at % 1000000000 };
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

static void *work(void *unused)
{
	(void)unused;
	for (;;) {
		long lookup = atomic_fetch_add(&next_lookup, 1);
		if (count > 0 && lookup >= count)
			return NULL;
		if (rate > 0)
			wait_for_turn(lookup);
		struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM };
		struct addrinfo *found = NULL;
		int64_t wall = now(CLOCK_REALTIME), start = now(CLOCK_MONOTONIC);
		int code = getaddrinfo(name, NULL, &hints, &found);
		int64_t took = now(CLOCK_MONOTONIC) - start;
		int v4 = 0, v6 = 0;
		for (struct addrinfo *one = code == 0 ? found : NULL; one; one = one->ai_next) {
			v4 += one->ai_family == AF_INET;
			v6 += one->ai_family == AF_INET6;
		}
		if (code == 0)
			freeaddrinfo(found);
		/* One call, so that lines of several threads stay whole. */
		if (printf("%lld %lld %s %d %d\n", (long long)wall, (long long)took, result(code), v4, v6) < 0
		    || fflush(stdout) != 0)
			exit(1);
	}
}

int main(int argc, char **argv)
{
	long threads = 1;
	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "--", 2) != 0 && !name)
			name = argv[i];
		else if (strcmp(argv[i], "--rate") == 0 && i + 1 < argc)
			rate = atof(argv[++i]);
		else if (strcmp(argv[i], "--count") == 0 && i + 1 < argc)
			count = atol(argv[++i]);
		else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
			threads = atol(argv[++i]);
		else
			name = NULL, i = argc;
	}
	if (!name || threads < 1 || rate < 0) {
		fprintf(stderr, "usage: getaddrinfo NAME [--rate N] [--count N] [--threads K]\n");
		return 64;
	}
	if (rate == 0 && count == 0)
		count = 1;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	pthread_t *all = calloc(threads, sizeof *all);
	for (long i = 0; all && i < threads; i++)
		if (pthread_create(&all[i], NULL, work, NULL) != 0)
			return 1;
	for (long i = 0; all && i < threads; i++)
		pthread_join(all[i], NULL);
	return 0;
}
