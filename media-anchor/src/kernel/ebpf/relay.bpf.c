// SPDX-License-Identifier: GPL-3.0-or-later
//
// Relays media at TC ingress: a packet whose addresses and ports are in a map leaves with others,
// by the device and the neighbour that the map names. Whatever is not in the map goes on to the
// stack untouched. Built by build.rs with `clang -target bpf`; the maps are filled by map.rs.
//
// Helpers and maps are declared here, so that the build needs the kernel's headers only.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BE16(x) ((__u16)__builtin_bswap16(x))
#else
#define BE16(x) ((__u16)(x))
#endif

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to,
			       __u64 flags) = (void *)BPF_FUNC_l4_csum_replace;
static __s64 (*csum_diff)(const void *from, __u32 from_size, const void *to, __u32 to_size,
			  __u32 seed) = (void *)BPF_FUNC_csum_diff;
static long (*pull_data)(struct __sk_buff *skb, __u32 len) = (void *)BPF_FUNC_skb_pull_data;
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int len,
			      __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

#define NEXT (-1) /* TC_ACT_UNSPEC, TCX_NEXT: the stack has it */
#define AF_INET 2
#define AF_INET6 10
#define TTL 64
#define ETH_LEN 14
#define L4_4 (ETH_LEN + 20)
#define L4_6 (ETH_LEN + 40)
#define UDP_CSUM 6

struct ports {
	__u16 source;
	__u16 dest;
};

/* Addresses as in the IP header, then ports as in the UDP header: network order. */
struct key4 {
	__u32 addr[2];
	struct ports ports;
};

struct key6 {
	__u32 addr[8];
	struct ports ports;
};

struct value4 {
	__u64 packets;
	__u64 bytes; /* of IP packets */
	struct key4 leaves;
	__u32 oif;
	__u32 via;
	__u16 mtu;
	__u8 tos;
	__u8 pad;
};

struct value6 {
	__u64 packets;
	__u64 bytes;
	struct key6 leaves;
	__u32 oif;
	__u32 via[4];
	__u16 mtu;
	__u8 tos;
	__u8 pad[5];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct key4);
	__type(value, struct value4);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} m4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct key6);
	__type(value, struct value6);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} m6 SEC(".maps");

struct iphdr4 {
	__u16 version_tos;
	__u16 len;
	__u16 id;
	__u16 fragment;
	__u16 ttl_protocol;
	__u16 checksum;
	__u32 addr[2];
} __attribute__((packed, aligned(2)));

struct iphdr6 {
	__u32 version_class_flow;
	__u16 payload_len;
	__u8 next;
	__u8 hop_limit;
	__u32 addr[8];
} __attribute__((packed, aligned(2)));

struct udphdr {
	struct ports ports;
	__u16 len;
	__u16 checksum;
} __attribute__((packed, aligned(2)));

INLINE __u32 differ(__u32 sum, __u16 from, __u16 to)
{
	return sum + (__u16)~from + to;
}

INLINE __u32 differ32(__u32 sum, __u32 from, __u32 to)
{
	sum = differ(sum, from & 0xffff, to & 0xffff);
	return differ(sum, from >> 16, to >> 16);
}

INLINE int relay4(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct iphdr4 *ip = data + ETH_LEN;
	struct udphdr *udp = data + L4_4;
	struct value4 *v;
	struct key4 old;
	__u16 version_tos, ttl_protocol;
	__u32 sum;

	if ((void *)(udp + 1) > end)
		return NEXT;
	/* Version 4 without options, UDP, no fragment. */
	if ((ip->version_tos & BE16(0xff00)) != BE16(0x4500) ||
	    (ip->ttl_protocol & BE16(0x00ff)) != BE16(IPPROTO_UDP) ||
	    (ip->fragment & BE16(0x3fff)) != 0)
		return NEXT;
	old.addr[0] = ip->addr[0];
	old.addr[1] = ip->addr[1];
	old.ports = udp->ports;
	v = map_lookup(&m4, &old);
	/* Something longer than the way out takes is left to userspace, which may fragment. */
	if (!v || BE16(ip->len) > v->mtu)
		return NEXT;

	version_tos = BE16(0x4500 | v->tos);
	ttl_protocol = BE16(TTL << 8 | IPPROTO_UDP);
	/* The header checksum is moved along, not made anew: a broken one stays broken. */
	sum = (__u16)~ip->checksum;
	sum = differ(sum, ip->version_tos, version_tos);
	sum = differ(sum, ip->ttl_protocol, ttl_protocol);
	sum = differ32(sum, old.addr[0], v->leaves.addr[0]);
	sum = differ32(sum, old.addr[1], v->leaves.addr[1]);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->version_tos = version_tos;
	ip->ttl_protocol = ttl_protocol;
	ip->checksum = (__u16)~sum;
	ip->addr[0] = v->leaves.addr[0];
	ip->addr[1] = v->leaves.addr[1];
	udp->ports = v->leaves.ports;
	__sync_fetch_and_add(&v->packets, 1);
	__sync_fetch_and_add(&v->bytes, BE16(ip->len));
	if (udp->checksum) {
		/* Ports are summed by the device where it finishes the checksum, addresses are not. */
		__s64 addrs = csum_diff(old.addr, 8, v->leaves.addr, 8, 0);
		__s64 ports = csum_diff(&old.ports, 4, &v->leaves.ports, 4, 0);
		l4_csum_replace(skb, L4_4 + UDP_CSUM, 0, addrs,
				BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
		l4_csum_replace(skb, L4_4 + UDP_CSUM, 0, ports, BPF_F_MARK_MANGLED_0);
	}

	struct bpf_redir_neigh nh = { .nh_family = AF_INET };

	nh.ipv4_nh = v->via;
	return redirect_neigh(v->oif, &nh, sizeof(nh), 0);
}

INLINE int relay6(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct iphdr6 *ip = data + ETH_LEN;
	struct udphdr *udp = data + L4_6;
	struct value6 *v;
	struct key6 old;
	__u32 len;

	if ((void *)(udp + 1) > end)
		return NEXT;
	/* UDP right behind the fixed header: extension headers are the stack's. */
	if (ip->next != IPPROTO_UDP)
		return NEXT;
	__builtin_memcpy(old.addr, ip->addr, sizeof(old.addr));
	old.ports = udp->ports;
	v = map_lookup(&m6, &old);
	len = BE16(ip->payload_len) + 40;
	if (!v || len > v->mtu)
		return NEXT;

	/* Version 6, traffic class, flow label 0. */
	*(__u16 *)&ip->version_class_flow = BE16(0x6000 | v->tos << 4);
	*((__u16 *)&ip->version_class_flow + 1) = 0;
	ip->hop_limit = TTL;
	__builtin_memcpy(ip->addr, v->leaves.addr, sizeof(old.addr));
	udp->ports = v->leaves.ports;
	__sync_fetch_and_add(&v->packets, 1);
	__sync_fetch_and_add(&v->bytes, len);
	if (udp->checksum) {
		__s64 addrs = csum_diff(old.addr, 32, v->leaves.addr, 32, 0);
		__s64 ports = csum_diff(&old.ports, 4, &v->leaves.ports, 4, 0);
		l4_csum_replace(skb, L4_6 + UDP_CSUM, 0, addrs,
				BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
		l4_csum_replace(skb, L4_6 + UDP_CSUM, 0, ports, BPF_F_MARK_MANGLED_0);
	}

	struct bpf_redir_neigh nh = { .nh_family = AF_INET6 };

	__builtin_memcpy(nh.ipv6_nh, v->via, 16);
	return redirect_neigh(v->oif, &nh, sizeof(nh), 0);
}

SEC("classifier")
int sbc_relay(struct __sk_buff *skb)
{
	/* Only frames to us: a standby that holds the same elements sees flooded ones too. Tagged
	 * frames are those of a VLAN device above. */
	if (skb->pkt_type != 0 /* PACKET_HOST */ || skb->vlan_present)
		return NEXT;
	switch (skb->protocol) {
	case BE16(ETH_P_IP):
		if (skb->data_end - skb->data < L4_4 + 8)
			pull_data(skb, L4_4 + 8);
		return relay4(skb);
	case BE16(ETH_P_IPV6):
		if (skb->data_end - skb->data < L4_6 + 8)
			pull_data(skb, L4_6 + 8);
		return relay6(skb);
	default:
		return NEXT;
	}
}

/* Helpers such as redirect_neigh are for programs under the GPL. */
char _license[] SEC("license") = "GPL";
