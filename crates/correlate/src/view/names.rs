//! Who is behind an address, in the words of a verdict?

use std::net::{IpAddr, SocketAddr};

use evidence::{KernelDrop, WallTime};

use super::View;

impl View {
    /// The name of a server: its pod where known, with the address.
    pub fn server_name(&self, server: &SocketAddr) -> String {
        match self.inventory.endpoints.iter().find(|e| e.address == *server) {
            Some(endpoint) if endpoint.name != server.to_string() => format!("{} ({server})", endpoint.name),
            Some(_) | None => server.to_string(),
        }
    }

    /// The pod that a server's address belongs to, or the address.
    pub fn pod_of_server(&self, server: &SocketAddr) -> String {
        let endpoint = self.inventory.endpoints.iter().find(|e| e.address == *server);
        endpoint.map_or_else(|| server.to_string(), |endpoint| endpoint.name.clone())
    }

    /// The name of a client: its pod where known, with the address.
    pub fn client_name(&self, client: IpAddr) -> String {
        match self.inventory.pods.iter().find(|pod| pod.addresses.contains(&client)) {
            Some(pod) => format!("{} ({client})", pod.name),
            None => client.to_string(),
        }
    }

    /// The client as a scope names it: its pod, or its address.
    pub fn client_key(&self, client: IpAddr) -> String {
        match self.inventory.pods.iter().find(|pod| pod.addresses.contains(&client)) {
            Some(pod) => pod.name.clone(),
            None => client.to_string(),
        }
    }

    /// The node that owns an address, where a pod of the inventory has it.
    pub fn node_of_address(&self, address: IpAddr) -> Option<String> {
        self.inventory
            .pods
            .iter()
            .find(|pod| pod.addresses.contains(&address))
            .and_then(|pod| pod.node.clone())
    }

    /// Whether the address is the Service's or a server's.
    pub fn is_dns(&self, address: &SocketAddr) -> bool {
        self.inventory.service.addresses.contains(address)
            || self.inventory.endpoints.iter().any(|e| e.address == *address)
    }

    /// The client's end of a dropped DNS packet: of a query its source, of an answer its destination.
    pub fn client_of(&self, dropped: &KernelDrop) -> SocketAddr {
        let tuple = dropped.original.unwrap_or(dropped.packet);
        if self.is_dns(&tuple.source) && !self.is_dns(&tuple.destination) {
            tuple.destination
        } else {
            tuple.source
        }
    }
}

/// "14:03:09.213", in UTC.
pub fn time_of_day(at: WallTime) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.0))
        .map_or_else(|_| "?".into(), |t| t.strftime("%H:%M:%S.%3f").to_string())
}
