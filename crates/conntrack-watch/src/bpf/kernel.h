/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel structures that the drop helper reads, each with the fields it reads and no others. libbpf finds
 * their real offsets in the running kernel's BTF (CO-RE), so order and size here mean nothing.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed int __s32;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
#include <stdbool.h>

/* linux/bpf.h, kernel user interface. */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

enum skb_drop_reason {
	SKB_DROP_REASON_NETFILTER_DROP = 12,
};

struct ns_common {
	unsigned int inum;
};

struct ip_conntrack_stat {
	unsigned int invalid;
	unsigned int insert_failed;
	unsigned int drop;
	unsigned int chaintoolong;
};

struct netns_ct {
	struct ip_conntrack_stat *stat;
};

struct net {
	struct ns_common ns;
	struct netns_ct ct;
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct rtnl_link_ops {
	const char *kind;
};

struct net_device {
	possible_net_t nd_net;
	char name[16];
	const struct rtnl_link_ops *rtnl_link_ops;
	/* From 6.10. Before, the driver's data follows the structure at the next multiple of 32. */
	unsigned char priv[0];
};

/* The other end has been its first field for as long as there is veth. */
struct veth_priv {
	struct net_device *peer;
};

struct dst_entry {
	struct net_device *dev;
	unsigned short flags;
};

struct sock_common {
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	unsigned long _nfct;
	unsigned int len;
	unsigned int data_len;
	__u32 mark;
	__be16 protocol;
	__u16 network_header;
	unsigned char *head;
	unsigned char *data;
};

union nf_inet_addr {
	__u32 all[4];
};

union nf_conntrack_man_proto {
	__be16 all;
};

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
	__u16 l3num;
};

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			__be16 all;
		} u;
		__u8 protonum;
	} dst;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};

struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	possible_net_t ct_net;
};

struct bpf_array {
	void *pptrs[0];
};

#pragma clang attribute pop
