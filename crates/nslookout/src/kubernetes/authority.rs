//! Where does a cluster keep the correlator's certificate authority?
//!
//! The key is kept in a Secret, so that a correlator that starts anew is trusted at once; the certificate is published
//! as a ConfigMap, which kubelet brings to the agents. Both belong to the correlator's Deployment and go with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Error, Resource};

use super::ApiServer;
use crate::config::AuthorityConfig;
use crate::transport::authority::Authority;

/// The authority and the objects that keep it.
pub struct Keeper<'a> {
    api: &'a ApiServer,
    config: &'a AuthorityConfig,
}

impl<'a> Keeper<'a> {
    /// Asks nothing yet.
    pub fn new(api: &'a ApiServer, config: &'a AuthorityConfig) -> Self {
        Self { api, config }
    }

    /// The authority that the Secret holds, or a new one that is put there; its certificate is published. The folder
    /// is this process' own copy.
    pub async fn authority(&self, folder: &Path, server: &str) -> Result<Authority> {
        let secrets: Api<Secret> = Api::namespaced(self.api.client.clone(), &self.config.namespace);
        let name = self.config.name.as_str();
        let authority = match secrets.get_opt(name).await.with_context(|| format!("get Secret {name}"))? {
            Some(secret) => of_secret(&secret, folder, server)?,
            None => {
                // What an earlier try left is not what will be in the Secret.
                FILES.iter().for_each(|file| drop(fs::remove_file(folder.join(file))));
                let authority = Authority::load(Some(folder), server)?;
                let files = FILES
                    .map(|file| fs::read(folder.join(file)).map(|text| (file.to_owned(), ByteString(text))));
                let secret = Secret {
                    metadata: self.metadata().await?,
                    data: Some(files.into_iter().collect::<Result<BTreeMap<_, _>, _>>()?),
                    ..Secret::default()
                };
                match secrets.create(&PostParams::default(), &secret).await {
                    Ok(_) => authority,
                    // Another correlator, which is on its way out, was a moment earlier.
                    Err(Error::Api(status)) if status.code == 409 => {
                        of_secret(&secrets.get(name).await?, folder, server)?
                    }
                    Err(error) => return Err(error).with_context(|| format!("create Secret {name}")),
                }
            }
        };
        self.publish(&authority.certificate).await?;
        Ok(authority)
    }

    async fn publish(&self, certificate: &str) -> Result<()> {
        let name = self.config.name.as_str();
        let maps: Api<ConfigMap> = Api::namespaced(self.api.client.clone(), &self.config.namespace);
        let data = BTreeMap::from([("ca.crt".to_owned(), certificate.to_owned())]);
        match maps.get_opt(name).await.with_context(|| format!("get ConfigMap {name}"))? {
            Some(present) if present.data.as_ref() == Some(&data) => Ok(()),
            Some(present) => {
                let next = ConfigMap { data: Some(data), ..present };
                let done = maps.replace(name, &PostParams::default(), &next).await;
                done.map(drop).with_context(|| format!("update ConfigMap {name}"))
            }
            None => {
                let metadata = self.metadata().await?;
                let next = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
                let done = maps.create(&PostParams::default(), &next).await;
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

fn of_secret(secret: &Secret, folder: &Path, server: &str) -> Result<Authority> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for file in FILES {
        let text = secret.data.as_ref().and_then(|data| data.get(file));
        let text =
            text.with_context(|| format!("the Secret has no {file}: delete it, and a new one is made"))?;
        let path = folder.join(file);
        let mut options = fs::OpenOptions::new();
        let open = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        open.and_then(|mut file| file.write_all(&text.0)).with_context(|| path.display().to_string())?;
    }
    Ok(Authority::load(Some(folder), server)?)
}

/// As `Authority` keeps them in a folder.
const FILES: [&str; 2] = ["ca.key", "ca.crt"];
