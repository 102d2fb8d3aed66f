//! What stands in a DNS packet, as far as a stub resolver looks at it?
//!
//! Answers come from strangers and may be cut, garbled or looping. A reading is kept as far as it went,
//! because the C libraries do the same: musl takes an answer by its ID alone and uses the records that
//! precede the damage. Whether an answer is accepted is for the profile to say, not for this file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use evidence::QueryType;
use hickory_proto::ProtoError;
use hickory_proto::op::{Header, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, DecodeError};

use crate::Error;

/// One query of a lookup, ready to be sent any number of times.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) qtype: QueryType,
    pub(crate) id: u16,
    pub(crate) bytes: Vec<u8>,
    question: Question,
}

/// What could be read of a packet that came back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) id: u16,
    pub(crate) rcode: u8,
    pub(crate) truncated: bool,
    pub(crate) authoritative: bool,
    pub(crate) recursion_available: bool,
    /// Answer records as the header counts them.
    pub(crate) answers: u16,
    /// Additional records as the header counts them.
    pub(crate) additionals: u16,
    /// Addresses in the answer section, up to the first damage.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether header, question and answer section could be read to their end.
    pub(crate) sound: bool,
    /// Whether the header was there whole.
    pub(crate) whole_header: bool,
    pub(crate) questions: Vec<Question>,
}

impl Query {
    /// A query with recursion desired and nothing else: no EDNS, no AD, as both libraries send by default.
    pub(crate) fn new(name: &str, qtype: QueryType, id: u16) -> Result<Self, Error> {
        let wrong = |e: ProtoError| Error::Name { name: name.to_owned(), reason: e.to_string() };
        let mut fqdn = Name::from_ascii(name).map_err(wrong)?;
        fqdn.set_fqdn(true);
        let question = Question::query(fqdn, record_type(qtype));
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(question.clone());
        let bytes = message.to_vec().map_err(wrong)?;
        Ok(Self { qtype, id, bytes, question })
    }

    /// Whether the answer carries this query's ID.
    pub(crate) fn has_id_of(&self, answer: &Answer) -> bool {
        self.id == answer.id
    }

    /// Whether the answer repeats this query's question and no other, letters of any case.
    pub(crate) fn has_question_of(&self, answer: &Answer) -> bool {
        matches!(answer.questions.as_slice(), [only]
            if only.query_type() == self.question.query_type()
                && only.query_class() == self.question.query_class()
                && only.name().eq_ignore_root(self.question.name()))
    }
}

impl Answer {
    /// Reads what can be read. Fewer than four octets hold neither ID nor response code: nothing.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let &[id_high, id_low, flags_high, flags_low, ..] = packet else { return None };
        let mut answer = Self {
            id: u16::from_be_bytes([id_high, id_low]),
            rcode: flags_low & 0x0f,
            truncated: flags_high & 0x02 != 0,
            authoritative: flags_high & 0x04 != 0,
            recursion_available: flags_low & 0x80 != 0,
            ..Self::default()
        };
        answer.sound = answer.read_sections(packet).is_ok();
        Some(answer)
    }

    fn read_sections(&mut self, packet: &[u8]) -> Result<(), DecodeError> {
        let mut decoder = BinDecoder::new(packet);
        let counts = Header::read(&mut decoder)?.counts;
        self.whole_header = true;
        self.answers = counts.answers;
        self.additionals = counts.additionals;
        for _ in 0..counts.queries {
            self.questions.push(Question::read(&mut decoder)?);
        }
        for _ in 0..counts.answers {
            self.addresses.extend(read_address(&mut decoder)?);
        }
        Ok(())
    }
}

/// Reads one record; an address if it is one. Other data is skipped, damaged or not, as the libraries do.
fn read_address(decoder: &mut BinDecoder<'_>) -> Result<Option<IpAddr>, DecodeError> {
    Name::read(decoder)?;
    let kind = RecordType::from(decoder.read_u16()?.unverified());
    let _class = decoder.read_u16()?;
    let _ttl = decoder.read_u32()?;
    let length = usize::from(decoder.read_u16()?.unverified());
    let data = decoder.read_slice(length)?.unverified();
    Ok(match kind {
        RecordType::A => <[u8; 4]>::try_from(data).ok().map(|o| Ipv4Addr::from(o).into()),
        RecordType::AAAA => <[u8; 16]>::try_from(data).ok().map(|o| Ipv6Addr::from(o).into()),
        _ => None,
    })
}

fn record_type(qtype: QueryType) -> RecordType {
    match qtype {
        QueryType::A => RecordType::A,
        QueryType::Aaaa => RecordType::AAAA,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::{RData, Record};
    use proptest::prelude::*;

    use super::*;

    fn query() -> Query {
        Query::new("kubernetes.default.svc.cluster.local.", QueryType::A, 0x1234).unwrap()
    }

    fn response() -> Vec<u8> {
        let query = query();
        let mut message = Message::response(query.id, OpCode::Query);
        message.metadata.response_code = ResponseCode::NoError;
        message.add_query(query.question.clone());
        message.add_answer(Record::from_rdata(
            query.question.name().clone(),
            5,
            RData::A(Ipv4Addr::new(10, 96, 0, 1).into()),
        ));
        message.to_vec().unwrap()
    }

    #[test]
    fn a_query_asks_for_recursion_and_nothing_else() {
        let bytes = query().bytes;
        assert_eq!(&bytes[..12], [0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes.len(), 12 + 38 + 4);
    }

    #[test]
    fn a_name_that_is_too_long_is_named_in_the_error() {
        let error = Query::new(&"x".repeat(64), QueryType::A, 1).unwrap_err().to_string();
        assert!(error.contains("xxxx"), "{error}");
    }

    #[test]
    fn a_whole_answer_is_read_with_its_address() {
        let answer = Answer::read(&response()).unwrap();
        assert!(answer.sound && query().has_id_of(&answer) && query().has_question_of(&answer));
        assert_eq!(answer.addresses, [IpAddr::from([10, 96, 0, 1])]);
    }

    #[test]
    fn a_cut_answer_keeps_what_precedes_the_cut() {
        let whole = response();
        let answer = Answer::read(&whole[..whole.len() - 2]).unwrap();
        assert!(!answer.sound && answer.addresses.is_empty() && answer.answers == 1);
        assert!(Answer::read(&whole[..11]).is_some_and(|a| !a.whole_header));
        assert!(Answer::read(&whole[..3]).is_none());
    }

    #[test]
    fn a_compression_loop_ends() {
        let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        bytes.extend([0xc0, 12, 0, 1, 0, 1]);
        assert!(!Answer::read(&bytes).unwrap().sound);
    }

    #[test]
    fn the_question_must_be_the_only_one_and_the_same_but_for_case() {
        let mut other = response();
        other[13] ^= 0x20;
        assert!(query().has_question_of(&Answer::read(&other).unwrap()));
        other[13] ^= 0x01;
        assert!(!query().has_question_of(&Answer::read(&other).unwrap()));
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Answer::read(&packet);
        }

        #[test]
        fn no_damaged_answer_makes_it_panic(at in 0_usize..70, with in any::<u8>(), keep in 0_usize..90) {
            let mut packet = response();
            if let Some(octet) = packet.get_mut(at) {
                *octet = with;
            }
            packet.truncate(keep);
            let _ = Answer::read(&packet);
        }
    }
}
