//! What do the lab's own clients ask, and is this datagram the answer?
//!
//! The clients here are the ones that count truth: they ask one valid question each, and only a response
//! with the same id counts. What the answer says doesn't matter to them.

use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::{Name, RecordType};

use crate::Error;

/// One encoded query whose id can be changed cheaply.
#[derive(Debug, Clone)]
pub struct Question {
    wire: Vec<u8>,
}

impl Question {
    /// An A question for this name, recursion desired.
    pub fn for_address(name: &str) -> Result<Self, Error> {
        let not_a_name = |reason: hickory_proto::ProtoError| {
            Error::system(format!("ask for {name:?}"))(std::io::Error::other(reason))
        };
        let mut parsed = Name::from_ascii(name).map_err(not_a_name)?;
        parsed.set_fqdn(true);
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(parsed, RecordType::A));
        Ok(Self { wire: message.to_vec().map_err(not_a_name)? })
    }

    /// The query as it goes on the wire, with this id.
    pub fn with_id(&self, id: u16) -> Vec<u8> {
        let rest = self.wire.get(2..).unwrap_or_default();
        id.to_be_bytes().iter().chain(rest).copied().collect()
    }
}

/// Is this datagram a response to the query with this id?
pub fn answers(datagram: &[u8], id: u16) -> bool {
    Message::from_vec(datagram).is_ok_and(|message| {
        message.metadata.id == id && message.metadata.message_type == MessageType::Response
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_keeps_its_name_when_its_id_changes() {
        let question = Question::for_address("kubernetes.default.svc.cluster.local").unwrap();
        for id in [0, 7, 0xffff] {
            let message = Message::from_vec(&question.with_id(id)).unwrap();
            assert_eq!(message.metadata.id, id);
            assert_eq!(message.queries[0].name().to_ascii(), "kubernetes.default.svc.cluster.local.");
        }
    }

    #[test]
    fn only_a_response_with_the_same_id_is_an_answer() {
        let query = Question::for_address("a.test").unwrap().with_id(9);
        assert!(!answers(&query, 9), "a query is no answer");
        let response = Message::from_vec(&query).unwrap().into_response().to_vec().unwrap();
        assert!(answers(&response, 9));
        assert!(!answers(&response, 8));
        assert!(!answers(b"", 9));
    }
}
