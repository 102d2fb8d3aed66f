/* What may a process of this pod do? Tries what no prober should, and prints a line for each: what, and the error's name
 * or "done". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void told(const char *what, long result)
{
	const char *name = "done";
	if (result < 0) {
		switch (errno) {
		case EPERM: name = "EPERM"; break;
		case EACCES: name = "EACCES"; break;
		case EROFS: name = "EROFS"; break;
		case ENOENT: name = "ENOENT"; break;
		default: name = strerror(errno);
		}
	}
	printf("%s %s\n", what, name);
}

int main(void)
{
	/* The beginning of union bpf_attr for BPF_MAP_CREATE: an array of one element. */
	unsigned int map[32] = {2, 4, 4, 1};

	told("raw-socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	told("packet-socket", socket(AF_PACKET, SOCK_RAW, 0));
	told("bpf", syscall(SYS_bpf, 0, map, sizeof map));
	told("write-to-root", open("/written", O_CREAT | O_WRONLY, 0600));
	told("api-token", open("/var/run/secrets/kubernetes.io/serviceaccount/token", O_RDONLY));
	told("become-root", setuid(0));
	return 0;
}
