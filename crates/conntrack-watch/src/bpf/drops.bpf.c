// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Which packets die in netfilter, and why?
 *
 * kfree_skb tells the packet and that netfilter dropped it, not what in netfilter did. The status bits of its conntrack
 * entry are too weak a sign: a rule in a chain after source NAT leaves the same bits as a failed insertion. The kernel's
 * own counters of this CPU tell them apart: a failed insertion raises insert_failed and drop just before the packet is
 * freed, a full table raises drop alone, a rule raises nothing. So each drop, of any protocol, takes what the counters
 * rose by since the last drop on this CPU in this namespace.
 */
#include "kernel.h"

#include <bpf/bpf_helpers.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define PROTO_TCP 6
#define PROTO_UDP 17
#define DST_METADATA 0x0080
#define NFCT_INFO 7UL
#define NFCT_UNTRACKED 7UL
#define IPS_CONFIRMED (1UL << 3)
#define IPS_SRC_NAT_DONE (1UL << 7)
#define IPS_DST_NAT_DONE (1UL << 8)
#define IPS_TEMPLATE (1UL << 11)

/* A DNS question needs 12 + 255 + 4 octets at most. */
#define PAYLOAD 272
/* A packet whose counter has risen is freed at once, unless a softirq drops others in between. */
#define CREDIT_LIFE_NS 10000000ULL

/* The order of evidence::DropClass::ALL. */
enum class {
	INSERT_RACE,
	TABLE_FULL,
	CHAIN_TOO_LONG,
	TRACKER_REFUSED,
	RULE,
	UNKNOWN,
};

/* IPv4 addresses are held as IPv4-mapped IPv6. */
struct endpoint {
	__u32 addr[4];
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct tuple {
	__u32 source[4];
	__u32 destination[4];
	__be16 source_port;
	__be16 destination_port;
};

/* What user space reads from the ring. src/drops/record.rs has the same offsets. */
struct record {
	__u64 time;
	__u32 netns;
	__u32 mark;
	__u8 class;
	__u8 proto;
	__u8 family;
	__u8 has_entry;
	__u16 payload_length;
	__u16 pad;
	struct tuple packet;
	struct tuple original;
	struct tuple reply;
	char device[16];
	__u8 payload[PAYLOAD];
	/* The namespace at the other end of the packet's veth; zero: it has none. */
	__u32 owner;
};

_Static_assert(sizeof(struct endpoint) == 20, "shared with record.rs");
_Static_assert(sizeof(struct tuple) == 36, "shared with record.rs");
_Static_assert(__builtin_offsetof(struct record, packet) == 24, "shared with record.rs");
_Static_assert(__builtin_offsetof(struct record, device) == 132, "shared with record.rs");
_Static_assert(__builtin_offsetof(struct record, payload) == 148, "shared with record.rs");
_Static_assert(__builtin_offsetof(struct record, owner) == 420, "shared with record.rs");
_Static_assert(sizeof(struct record) == 424, "shared with record.rs");

struct place {
	__u32 netns;
	__u32 cpu;
};

struct counters {
	__u32 invalid;
	__u32 insert_failed;
	__u32 drop;
	__u32 chaintoolong;
};

/* Rises of the counters that no packet has taken yet. */
struct credits {
	__u32 race;
	__u32 chain;
	__u32 dying;
	__u32 full;
};

struct baseline {
	struct counters seen;
	struct credits left;
	__u64 left_until;
	/* Inode numbers are used again, cookies are not. Zero: not known yet (seeded by user space). */
	__u64 cookie;
};

struct total_key {
	__u32 netns;
	__u32 class;
};

struct total {
	__u64 all;
	__u64 dns;
};

/* What went wrong in here. src/drops/mod.rs reads it. */
struct trouble {
	__u64 lost_records;
	__u64 uncounted;
	__u64 no_baseline;
	__u64 abandoned;
	__u64 unread;
};

struct scratch {
	__u64 element;
	__u64 map;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} anchor SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} pointers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trouble);
} troubles SEC(".maps");

/* A base line that had to make room for another costs one packet of class UNKNOWN. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct place);
	__type(value, struct baseline);
} baselines SEC(".maps");

/* No LRU: a total that is thrown out is lost. User space sets the size, and deletes what stands still. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct total_key);
	__type(value, struct total);
} totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct endpoint);
	__type(value, __u8);
} dns SEC(".maps");

/* Which namespace a pod's namespace hangs on, as its drops showed. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, __u32);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} records SEC(".maps");

/* A packet's addresses as they are now. */
struct packet {
	struct endpoint source;
	struct endpoint destination;
	__u32 payload_at;
	__u8 family;
	bool ports;
};

static __always_inline struct nf_conn *entry_of(struct sk_buff *skb)
{
	return (struct nf_conn *)(BPF_CORE_READ(skb, _nfct) & ~NFCT_INFO);
}

/*
 * skb->dev is not set in LOCAL_OUT, and is part of a tree node in TCP's retransmissions: the route's device is right where
 * there is a route.
 */
static __always_inline struct net_device *device_of(struct sk_buff *skb)
{
	struct dst_entry *dst = (struct dst_entry *)(BPF_CORE_READ(skb, _skb_refdst) & ~1UL);
	struct net_device *dev = NULL;

	if (dst && !(BPF_CORE_READ(dst, flags) & DST_METADATA))
		dev = BPF_CORE_READ(dst, dev);
	return dev ? dev : BPF_CORE_READ(skb, dev);
}

/*
 * The namespace whose hooks the packet went through. The entry knows best. A socket comes last: over veth a packet keeps
 * its sender's socket, of another namespace.
 */
static __always_inline struct net *net_of(struct sk_buff *skb, struct nf_conn *entry, struct net_device *dev)
{
	struct net *net = NULL;
	struct sock *sk;

	if (entry)
		net = BPF_CORE_READ(entry, ct_net.net);
	if (net)
		return net;
	if (dev)
		return BPF_CORE_READ(dev, nd_net.net);
	sk = BPF_CORE_READ(skb, sk);
	if (sk)
		return BPF_CORE_READ(sk, __sk_common.skc_net.net);
	return NULL;
}

/*
 * The namespace at the other end of the packet's veth: for a pod's namespace, its node's. It tells the pods of one node
 * from those of another on the same kernel, which may have the same addresses.
 */
static __always_inline __u32 owner_of(struct net_device *dev)
{
	const char *kind = NULL;
	struct veth_priv *veth;
	struct net_device *peer = NULL;
	struct net *net = NULL;
	__u32 inum = 0;
	char name[5] = {};

	if (!dev)
		return 0;
	kind = BPF_CORE_READ(dev, rtnl_link_ops, kind);
	if (!kind || bpf_probe_read_kernel(name, sizeof(name), kind) || name[0] != 'v' || name[1] != 'e' ||
	    name[2] != 't' || name[3] != 'h' || name[4])
		return 0;
	if (bpf_core_field_exists(dev->priv))
		veth = (void *)dev + bpf_core_field_offset(dev->priv);
	else
		veth = (void *)dev + ((bpf_core_type_size(struct net_device) + 31) & ~31UL);
	if (bpf_probe_read_kernel(&peer, sizeof(peer), veth) || !peer)
		return 0;
	net = BPF_CORE_READ(peer, nd_net.net);
	if (net)
		inum = BPF_CORE_READ(net, ns.inum);
	return inum;
}

/*
 * What to add to a per-CPU pointer of the kernel to reach this CPU's copy. No helper tells, but the address of an element
 * of an own per-CPU array less that array's per-CPU pointer is it. The verifier refuses arithmetic on the two pointers;
 * written to a map and read back they are numbers.
 */
static __always_inline bool cpu_offset(__u64 *offset)
{
	volatile struct scratch *pointer;
	__u64 *element, pptr = 0, base;
	struct bpf_array *map;
	__u32 zero = 0;

	element = bpf_map_lookup_elem(&anchor, &zero);
	pointer = bpf_map_lookup_elem(&pointers, &zero);
	if (!element || !pointer)
		return false;
	pointer->element = (__u64)element;
	pointer->map = (__u64)&anchor;
	base = pointer->element;
	map = (struct bpf_array *)pointer->map;
	if (bpf_core_read(&pptr, sizeof(pptr), &map->pptrs) || !pptr)
		return false;
	*offset = base - pptr;
	return true;
}

static __always_inline bool read_counters(struct net *net, struct counters *now)
{
	__u64 offset, stat = (__u64)BPF_CORE_READ(net, ct.stat);
	struct ip_conntrack_stat *mine;

	if (!stat || !cpu_offset(&offset))
		return false;
	mine = (struct ip_conntrack_stat *)(stat + offset);
	if (bpf_core_read(&now->insert_failed, sizeof(__u32), &mine->insert_failed) ||
	    bpf_core_read(&now->drop, sizeof(__u32), &mine->drop))
		return false;
	bpf_core_read(&now->invalid, sizeof(__u32), &mine->invalid);
	now->chaintoolong = 0;
	if (bpf_core_field_exists(mine->chaintoolong))
		bpf_core_read(&now->chaintoolong, sizeof(__u32), &mine->chaintoolong);
	return true;
}

/* What the counters' rise stands for, in packets. */
static __always_inline void credit(struct credits *to, const struct counters *from, const struct counters *now)
{
	__u32 chain = now->chaintoolong - from->chaintoolong;
	__u32 refused = now->insert_failed - from->insert_failed;
	__u32 drop = now->drop - from->drop;
	__u32 race;

	refused = refused > chain ? refused - chain : 0;
	/* A clash raises both. insert_failed alone: the entry was deleted under the packet. */
	race = refused < drop ? refused : drop;
	to->chain += chain;
	to->race += race;
	to->dying += refused - race;
	to->full += drop - race;
}

static __always_inline bool take(__u32 *credit)
{
	if (!*credit)
		return false;
	*credit -= 1;
	return true;
}

/* The class of a packet, by credits that its own state allows it to take. */
static __always_inline enum class spend(struct credits *left, __u64 nfct, __u64 status, __u8 proto, bool invalid)
{
	bool tracked = nfct & ~NFCT_INFO;

	if (!tracked) {
		if ((nfct & NFCT_INFO) != NFCT_UNTRACKED && take(&left->full))
			/* UDP's tracker refuses nothing; TCP's counts what it refuses as invalid too. */
			return proto == PROTO_TCP && invalid ? TRACKER_REFUSED : TABLE_FULL;
		return RULE;
	}
	if (status & (IPS_CONFIRMED | IPS_TEMPLATE))
		return RULE;
	/* NAT is in use and the source NAT hook is still to come: too early for an insertion. */
	if ((status & IPS_DST_NAT_DONE) && !(status & IPS_SRC_NAT_DONE))
		return RULE;
	if (take(&left->race))
		return INSERT_RACE;
	if (take(&left->chain))
		return CHAIN_TOO_LONG;
	if (take(&left->dying))
		return UNKNOWN;
	return RULE;
}

static __always_inline enum class classify(struct net *net, __u32 netns, struct sk_buff *skb, struct nf_conn *entry,
					   __u8 proto, struct trouble *trouble)
{
	struct place place = { .netns = netns, .cpu = bpf_get_smp_processor_id() };
	struct counters now = {};
	__u64 cookie = 0, time = bpf_ktime_get_boot_ns();
	__u64 nfct = BPF_CORE_READ(skb, _nfct), status = 0;
	struct baseline *base;
	enum class class;
	bool invalid;

	if (entry)
		status = BPF_CORE_READ(entry, status);
	if (bpf_core_field_exists(net->net_cookie))
		cookie = BPF_CORE_READ(net, net_cookie);
	if (!read_counters(net, &now)) {
		trouble->no_baseline += 1;
		return UNKNOWN;
	}
	base = bpf_map_lookup_elem(&baselines, &place);
	if (!base || (base->cookie && base->cookie != cookie)) {
		struct baseline first = { .seen = now, .cookie = cookie };
		struct credits all = {};
		struct counters zero = {};

		if (bpf_map_update_elem(&baselines, &place, &first, BPF_ANY))
			trouble->uncounted += 1;
		/* The counters may be as old as the namespace: they prove a rule, where they are zero, and no more. */
		credit(&all, &zero, &now);
		class = spend(&all, nfct, status, proto, now.invalid);
		if (class == RULE)
			return RULE;
		trouble->no_baseline += 1;
		return UNKNOWN;
	}
	base->cookie = cookie;
	if (base->left_until < time) {
		trouble->abandoned += base->left.race + base->left.chain + base->left.full;
		__builtin_memset(&base->left, 0, sizeof(base->left));
	}
	credit(&base->left, &base->seen, &now);
	invalid = now.invalid != base->seen.invalid;
	base->seen = now;
	/* What is left belongs to a packet that is about to be freed: a softirq came between its counter and its end. */
	base->left_until = time + CREDIT_LIFE_NS;
	return spend(&base->left, nfct, status, proto, invalid);
}

static __always_inline void set_v4(__u32 addr[4], __be32 v4)
{
	addr[0] = 0;
	addr[1] = 0;
	addr[2] = bpf_htonl(0xffff);
	addr[3] = v4;
}

/* Finds addresses and ports in the packet's linear part. Ports of a later fragment can't be known. */
static __always_inline bool read_packet(struct sk_buff *skb, struct packet *packet)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	__u32 at = BPF_CORE_READ(skb, network_header);
	__be16 protocol = BPF_CORE_READ(skb, protocol);
	bool first = true;
	__be16 ports[2];
	__u8 proto;

	if (protocol == bpf_htons(ETH_P_IP)) {
		struct {
			__u8 version_ihl, tos;
			__be16 length, id, fragment;
			__u8 ttl, proto;
			__be16 check;
			__be32 source, destination;
		} ip;

		if (bpf_probe_read_kernel(&ip, sizeof(ip), head + at))
			return false;
		packet->family = 4;
		set_v4(packet->source.addr, ip.source);
		set_v4(packet->destination.addr, ip.destination);
		proto = ip.proto;
		first = !(ip.fragment & bpf_htons(0x1fff));
		at += (ip.version_ihl & 15) * 4;
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct {
			__be32 version;
			__be16 length;
			__u8 next, hops;
			__u32 source[4], destination[4];
		} ip;

		if (bpf_probe_read_kernel(&ip, sizeof(ip), head + at))
			return false;
		packet->family = 6;
		__builtin_memcpy(packet->source.addr, ip.source, 16);
		__builtin_memcpy(packet->destination.addr, ip.destination, 16);
		proto = ip.next;
		at += sizeof(ip);
		/* Hop-by-hop, routing, destination options and fragment headers. */
#pragma unroll
		for (int i = 0; i < 4; i++) {
			struct {
				__u8 next, length;
				__be16 fragment;
			} extension;

			if (proto != 0 && proto != 43 && proto != 44 && proto != 60)
				break;
			if (bpf_probe_read_kernel(&extension, sizeof(extension), head + at))
				return false;
			if (proto == 44) {
				first = !(extension.fragment & bpf_htons(0xfff8));
				at += 8;
			} else {
				at += (extension.length + 1) * 8;
			}
			proto = extension.next;
		}
	} else {
		return false;
	}
	packet->source.proto = proto;
	packet->destination.proto = proto;
	if (!first || (proto != PROTO_UDP && proto != PROTO_TCP))
		return true;
	if (bpf_probe_read_kernel(&ports, sizeof(ports), head + at))
		return true;
	packet->source.port = ports[0];
	packet->destination.port = ports[1];
	packet->ports = true;
	packet->payload_at = at + 8;
	return true;
}

static __always_inline void read_tuple(struct tuple *to, const struct nf_conntrack_tuple *from, __u8 family)
{
	__u32 source[4] = {}, destination[4] = {};

	bpf_core_read(source, sizeof(source), &from->src.u3.all);
	bpf_core_read(destination, sizeof(destination), &from->dst.u3.all);
	bpf_core_read(&to->source_port, sizeof(__be16), &from->src.u.all);
	bpf_core_read(&to->destination_port, sizeof(__be16), &from->dst.u.all);
	if (family == 4) {
		set_v4(to->source, source[0]);
		set_v4(to->destination, destination[0]);
	} else {
		__builtin_memcpy(to->source, source, 16);
		__builtin_memcpy(to->destination, destination, 16);
	}
}

static __always_inline bool is_dns(const __u32 addr[4], __be16 port, __u8 proto)
{
	struct endpoint key = { .port = port, .proto = proto };

	__builtin_memcpy(key.addr, addr, 16);
	return bpf_map_lookup_elem(&dns, &key);
}

static __always_inline void count(__u32 netns, enum class class, bool is_dns, struct trouble *trouble)
{
	struct total_key key = { .netns = netns, .class = class };
	struct total *total = bpf_map_lookup_elem(&totals, &key);

	if (!total) {
		struct total zero = {};

		bpf_map_update_elem(&totals, &key, &zero, BPF_NOEXIST);
		total = bpf_map_lookup_elem(&totals, &key);
	}
	if (!total) {
		trouble->uncounted += 1;
		return;
	}
	total->all += 1;
	if (is_dns)
		total->dns += 1;
}

/* The inode number of a namespace that is gone is used again, maybe by a pod of another node. */
static __always_inline void remember_owner(__u32 netns, __u32 owner)
{
	__u32 *known;

	if (!owner)
		return;
	known = bpf_map_lookup_elem(&owners, &netns);
	if (!known || *known != owner)
		bpf_map_update_elem(&owners, &netns, &owner, BPF_ANY);
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(on_kfree_skb, struct sk_buff *skb, void *location, enum skb_drop_reason reason)
{
	struct tuple original = {}, reply = {};
	struct packet packet = {};
	struct trouble *trouble;
	struct record *record;
	struct nf_conn *entry;
	struct net_device *dev;
	struct net *net;
	enum class class;
	__u32 zero = 0, owner, netns, linear, start;
	__u64 length;
	bool dns_packet = false, has_entry = false, readable;
	__u8 *payload;

	if (reason != bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_NETFILTER_DROP))
		return 0;
	trouble = bpf_map_lookup_elem(&troubles, &zero);
	if (!trouble)
		return 0;
	entry = entry_of(skb);
	dev = device_of(skb);
	net = net_of(skb, entry, dev);
	if (!net) {
		trouble->unread += 1;
		return 0;
	}
	netns = BPF_CORE_READ(net, ns.inum);
	readable = read_packet(skb, &packet);
	class = classify(net, netns, skb, entry, packet.source.proto, trouble);

	if (readable && packet.ports)
		dns_packet = is_dns(packet.destination.addr, packet.destination.port, packet.destination.proto) ||
			     is_dns(packet.source.addr, packet.source.port, packet.source.proto);
	if (readable && entry && !(BPF_CORE_READ(entry, status) & IPS_TEMPLATE)) {
		has_entry = true;
		read_tuple(&original, &entry->tuplehash[0].tuple, packet.family);
		read_tuple(&reply, &entry->tuplehash[1].tuple, packet.family);
		dns_packet = dns_packet ||
			     is_dns(original.destination, original.destination_port, packet.source.proto) ||
			     is_dns(reply.source, reply.source_port, packet.source.proto);
	}
	/* Before the total: who reads that asks for the owner. */
	owner = owner_of(dev);
	remember_owner(netns, owner);
	count(netns, class, dns_packet, trouble);
	if (!dns_packet)
		return 0;

	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record) {
		trouble->lost_records += 1;
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->time = bpf_ktime_get_boot_ns();
	record->netns = netns;
	record->mark = BPF_CORE_READ(skb, mark);
	record->class = class;
	record->proto = packet.source.proto;
	record->family = packet.family;
	record->has_entry = has_entry;
	__builtin_memcpy(record->packet.source, packet.source.addr, 16);
	__builtin_memcpy(record->packet.destination, packet.destination.addr, 16);
	record->packet.source_port = packet.source.port;
	record->packet.destination_port = packet.destination.port;
	record->original = original;
	record->reply = reply;
	record->owner = owner;
	/* Where the packet came in, if it came in. For TCP see device_of(). */
	if (packet.source.proto == PROTO_UDP && BPF_CORE_READ(skb, dev))
		dev = BPF_CORE_READ(skb, dev);
	if (dev)
		bpf_core_read_str(record->device, sizeof(record->device), &dev->name);
	/* The payload's part in the linear area, which for a datagram of this size is all of it. */
	payload = BPF_CORE_READ(skb, head) + packet.payload_at;
	start = BPF_CORE_READ(skb, data) - BPF_CORE_READ(skb, head);
	linear = start + BPF_CORE_READ(skb, len) - BPF_CORE_READ(skb, data_len);
	if (packet.ports && packet.source.proto == PROTO_UDP && linear > packet.payload_at) {
		length = linear - packet.payload_at;
		if (length > PAYLOAD)
			length = PAYLOAD;
		/* The verifier must see the check that the compiler knows to be needless. */
		asm volatile("" : "+r"(length));
		if (length <= PAYLOAD && !bpf_probe_read_kernel(record->payload, length, payload))
			record->payload_length = length;
	}
	bpf_ringbuf_submit(record, 0);
	return 0;
}
