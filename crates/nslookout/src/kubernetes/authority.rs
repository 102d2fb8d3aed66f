//! Where does a cluster keep the correlator's certificate authority?
//!
//! The key is kept in a Secret, so that a correlator that starts anew is trusted at once; the certificate is published
//! as a ConfigMap, which kubelet brings to the agents. Both belong to the correlator's Deployment and go with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Resource};

use super::ApiServer;
use crate::config::AuthorityConfig;
use crate::store::write_whole;
use crate::transport::authority::{Authority, FILE, Times};

/// The authority and the objects that keep it.
#[derive(Clone)]
pub struct Keeper {
    api: ApiServer,
    config: AuthorityConfig,
}

impl Keeper {
    /// Asks nothing yet.
    pub fn new(api: ApiServer, config: AuthorityConfig) -> Self {
        Self { api, config }
    }

    /// The authority that the Secret holds, else a new one. The folder is this process' own copy: it is gone by while
    /// the API server is away.
    pub async fn authority(&self, folder: &Path, server: &str) -> Result<Authority> {
        let (name, file) = (&self.config.name, folder.join(FILE));
        match self.secrets().get_opt(name).await {
            Ok(Some(secret)) => copy(&secret, &file).with_context(|| format!("Secret {name}"))?,
            // What an earlier try left is not what will be in the Secret.
            Ok(None) => drop(fs::remove_file(&file)),
            Err(_) if file.exists() => {}
            Err(error) => return Err(error).with_context(|| format!("get Secret {name}")),
        }
        Ok(Authority::load(Some(folder), server, Times::default(), SystemTime::now())?)
    }

    /// Sees to it that both objects are there, with this authority and what agents are to trust, and go with the present
    /// Deployment.
    pub async fn keep(&self, authority: &str, bundle: &str) -> Result<()> {
        let data = BTreeMap::from([(FILE.to_owned(), ByteString(authority.as_bytes().to_vec()))]);
        let metadata = self.metadata().await?;
        let (secrets, name) = (self.secrets(), self.config.name.as_str());
        let wanted = Secret { metadata: metadata.clone(), data: Some(data), ..Secret::default() };
        match secrets.get_opt(name).await.with_context(|| format!("get Secret {name}"))? {
            Some(present)
                if present.data == wanted.data
                    && present.metadata.owner_references == metadata.owner_references => {}
            Some(_) => {
                let done = secrets.replace(name, &PostParams::default(), &wanted).await;
                done.map(drop).with_context(|| format!("update Secret {name}"))?;
            }
            None => {
                let done = secrets.create(&PostParams::default(), &wanted).await;
                done.map(drop).with_context(|| format!("create Secret {name}"))?;
            }
        }
        self.publish(bundle.to_owned(), metadata).await
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.api.client.clone(), &self.config.namespace)
    }

    async fn publish(&self, certificate: String, metadata: ObjectMeta) -> Result<()> {
        let name = self.config.name.as_str();
        let maps: Api<ConfigMap> = Api::namespaced(self.api.client.clone(), &self.config.namespace);
        let data = BTreeMap::from([("ca.crt".to_owned(), certificate)]);
        let wanted = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
        match maps.get_opt(name).await.with_context(|| format!("get ConfigMap {name}"))? {
            Some(present)
                if present.data == wanted.data
                    && present.metadata.owner_references == wanted.metadata.owner_references =>
            {
                Ok(())
            }
            Some(_) => {
                let done = maps.replace(name, &PostParams::default(), &wanted).await;
                done.map(drop).with_context(|| format!("update ConfigMap {name}"))
            }
            None => {
                let done = maps.create(&PostParams::default(), &wanted).await;
                done.map(drop).with_context(|| format!("create ConfigMap {name}"))
            }
        }
    }

    /// Owned by the Deployment: deleted with it, by the cluster itself.
    async fn metadata(&self) -> Result<ObjectMeta> {
        let deployments: Api<Deployment> = Api::namespaced(self.api.client.clone(), &self.config.namespace);
        let owner = self.config.owner.as_str();
        let owner = deployments.get(owner).await.with_context(|| format!("get Deployment {owner}"))?;
        let owner = OwnerReference {
            controller: None,
            block_owner_deletion: None,
            ..owner.owner_ref(&()).unwrap_or_default()
        };
        Ok(ObjectMeta {
            name: Some(self.config.name.clone()),
            namespace: Some(self.config.namespace.clone()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        })
    }
}

fn copy(secret: &Secret, file: &Path) -> Result<()> {
    let text = secret.data.as_ref().and_then(|data| data.get(FILE));
    let text = text.with_context(|| format!("it has no {FILE}: delete it, and a new one is made"))?;
    write_whole(file, &text.0, 0o600).with_context(|| file.display().to_string())
}
