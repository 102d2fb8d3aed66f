//! How are netlink messages and attributes laid out?
//!
//! Headers and attributes alone, no meaning: [`super::ctnetlink`] gives them that. Everything read here comes from
//! outside the process, so a length that lies ends the walk and never panics.

/// `struct nlmsghdr` and `struct nfgenmsg` together.
pub const HEADERS: usize = 20;

const NLMSGHDR: usize = 16;
const NLATTR: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER are no part of the type.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// One message as received: type, flags, sequence and what follows the netlink header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// The rest, still with its `nfgenmsg` where the kind has one.
    pub payload: &'a [u8],
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// `nla_type` without its flags.
    pub kind: u16,
    /// The value.
    pub value: &'a [u8],
}

/// Walks the messages of one datagram. Ends at the first length that can't be.
#[derive(Debug, Clone)]
pub struct Messages<'a>(&'a [u8]);

/// Walks attributes. Ends at the first length that can't be.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

/// Builds one request.
#[derive(Debug)]
pub struct Request(Vec<u8>);

impl<'a> Messages<'a> {
    /// The messages of one datagram.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let rest = self.0;
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let message = rest.get(..length)?;
        self.0 = rest.get(align(length)..).unwrap_or_default();
        Some(Message {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            payload: message.get(NLMSGHDR..)?,
        })
    }
}

impl<'a> Attributes<'a> {
    /// The attributes of a nest.
    pub fn new(nest: &'a [u8]) -> Self {
        Self(nest)
    }

    /// The attributes that follow the `nfgenmsg` of a netfilter message.
    pub fn after_nfgenmsg(payload: &'a [u8]) -> Self {
        Self(payload.get(HEADERS - NLMSGHDR..).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let rest = self.0;
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & NLA_TYPE_MASK;
        let value = rest.get(NLATTR..length)?;
        self.0 = rest.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

impl Attribute<'_> {
    /// The value as a big-endian number, which is what ctnetlink speaks.
    pub fn be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as a big-endian number.
    pub fn be16(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as one octet.
    pub fn octet(&self) -> Option<u8> {
        self.value.first().copied()
    }
}

impl Request {
    /// A netfilter request: message type (subsystem << 8 | message), flags, and the address family.
    pub fn new(kind: u16, flags: u16, sequence: u32, family: u8) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        // The kernel fills in the port id.
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        // struct nfgenmsg: family, version 0, resource id 0.
        bytes.extend_from_slice(&[family, 0, 0, 0]);
        Self(bytes)
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(NLATTR + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    /// Adds a nest whose attributes the closure adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.attribute(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        if let Some(header) = self.0.get_mut(start..start + 2) {
            header.copy_from_slice(&length.to_ne_bytes());
        }
        self
    }

    /// The bytes to send.
    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        if let Some(header) = self.0.get_mut(..4) {
            header.copy_from_slice(&length.to_ne_bytes());
        }
        self.0
    }
}

/// A host-endian number at an offset.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset.checked_add(2)?)?.try_into().ok()?))
}

/// Messages and attributes start at multiples of four.
fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_reads_back_as_it_was_built() {
        let mut request = Request::new(0x0101, 0x301, 7, 2);
        request.attribute(9, &[1, 2, 3]).nest(4, |nest| {
            nest.attribute(1, &8u16.to_be_bytes());
        });
        let bytes = request.finish();
        let message = Messages::new(&bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (0x0101, 0x301, 7));
        let attributes: Vec<_> = Attributes::after_nfgenmsg(message.payload).collect();
        assert_eq!(attributes[0], Attribute { kind: 9, value: &[1, 2, 3] });
        assert_eq!(attributes[1].kind, 4);
        assert_eq!(Attributes::new(attributes[1].value).next().unwrap().be16(), Some(8));
    }

    #[test]
    fn a_length_of_zero_ends_the_walk() {
        assert_eq!(Messages::new(&[0; 64]).count(), 0);
        assert_eq!(Attributes::new(&[0; 64]).count(), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_walk_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            for message in Messages::new(&bytes) {
                for attribute in Attributes::after_nfgenmsg(message.payload) {
                    let _ = (attribute.be32(), attribute.be16(), attribute.octet());
                }
            }
            prop_assert!(Attributes::new(&bytes).count() <= bytes.len() / NLATTR + 1);
        }
    }
}
