//! Who is an object, and what keeps it?

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

/// The few fields of an object's metadata that are used. `managedFields` alone would be half of every pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata {
    /// As kube wants to see it.
    pub object: ObjectMeta,
    owners: Vec<Reference>,
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Fields {
            name: Option<String>,
            namespace: Option<String>,
            resource_version: Option<String>,
            labels: Option<BTreeMap<String, String>>,
            owner_references: Option<Vec<Reference>>,
        }
        let fields = Fields::deserialize(deserializer)?;
        let object = ObjectMeta {
            name: fields.name,
            namespace: fields.namespace,
            resource_version: fields.resource_version,
            labels: fields.labels,
            ..ObjectMeta::default()
        };
        Ok(Self { object, owners: fields.owner_references.unwrap_or_default() })
    }
}

impl Metadata {
    /// The object's name.
    pub fn name(&self) -> &str {
        self.object.name.as_deref().unwrap_or_default()
    }

    /// Its namespace, empty where it has none.
    pub fn namespace(&self) -> &str {
        self.object.namespace.as_deref().unwrap_or_default()
    }

    /// The value of one of its labels.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.object.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// What keeps a pod running. A ReplicaSet of a Deployment bears its name and the hash that is the pod's label
    /// too; a Job of a CronJob its name and the minute, eight digits since 1990. So neither has to be asked for.
    pub fn workload(&self) -> Option<String> {
        let Reference { kind, name, .. } = self.owners.iter().find(|owner| owner.controller == Some(true))?;
        let deployment = || name.strip_suffix(self.label("pod-template-hash")?)?.strip_suffix('-');
        let cron_job = || {
            let (of, minute) = name.rsplit_once('-')?;
            (minute.len() >= 8 && minute.bytes().all(|byte| byte.is_ascii_digit())).then_some(of)
        };
        match kind.as_str() {
            // A static pod: its node's kubelet keeps it.
            "Node" => None,
            "ReplicaSet" if let Some(name) = deployment() => Some(format!("Deployment/{name}")),
            "Job" if let Some(name) = cron_job() => Some(format!("CronJob/{name}")),
            _ => Some(format!("{kind}/{name}")),
        }
    }
}

/// A reference to another object.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Reference {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Of an owner: whether it is the one that keeps the object.
    pub controller: Option<bool>,
}
