//! The store: bundles' files between visits, each under its own hash, so that equal files of two bundles are one.
//!
//! A file is right when its hash is; how long it is tells what is still to be fetched. So nothing needs to be renamed when it
//! is complete, and what a killed tab left behind is simply a beginning.
//!
//! Must not know: the network, what is in the files.

use crate::opfs::{Appending, File, Folder, words};
use js_sys::Uint8Array;
use sha2::{Digest, Sha256};
use wasm_bindgen::JsValue;
use web::keep::unneeded;

const FILES: &str = "bundle-files";
/// One manifest per bundle that was opened here: what it names is kept.
const MANIFESTS: &str = "bundle-manifests";

#[derive(Clone)]
pub struct Store {
    files: Folder,
    manifests: Folder,
}

impl Store {
    /// # Errors
    /// A sentence that says why this browser keeps nothing.
    pub async fn open() -> Result<Store, String> {
        let reason = |error: JsValue| {
            format!(
                "this browser keeps no files for this page ({}). In a private window, or at an address without https, it cannot",
                words(&error)
            )
        };
        let files = Folder::open(FILES).await.map_err(reason)?;
        let manifests = Folder::open(MANIFESTS).await.map_err(reason)?;
        Ok(Store { files, manifests })
    }

    /// Remembers what the bundle at this address consists of, and gives up the files that no remembered bundle has: those of
    /// its own older versions.
    pub async fn remember(&self, address: &str, manifest: &[u8]) -> Result<(), JsValue> {
        let name = name_of(address);
        {
            let mut file = self.manifests.append_to(&name).await?;
            file.truncate(0)?;
            file.append(&Uint8Array::from(manifest))?;
        }
        self.give_up_unneeded().await
    }

    /// Gives up every other bundle, for space.
    pub async fn forget_all_but(&self, address: &str) -> Result<(), JsValue> {
        let name = name_of(address);
        for other in self.manifests.names().await?.iter().filter(|other| **other != name) {
            self.manifests.remove(other).await;
        }
        self.give_up_unneeded().await
    }

    async fn give_up_unneeded(&self) -> Result<(), JsValue> {
        let mut manifests = Vec::new();
        for name in self.manifests.names().await? {
            let mut manifest = Vec::new();
            self.manifests.read(&name).await?.read_into(&mut manifest).await?;
            manifests.push(manifest);
        }
        let stored = self.files.names().await?;
        for name in unneeded(&stored, &manifests) {
            self.files.remove(name).await;
        }
        Ok(())
    }

    /// The file of this hash as far as it is here.
    pub async fn read(&self, sha256: &str) -> Result<File, JsValue> {
        self.files.read(sha256).await
    }

    /// Opens the file of this hash to add to it.
    pub async fn append_to(&self, sha256: &str) -> Result<Appending, JsValue> {
        self.files.append_to(sha256).await
    }

    pub async fn remove(&self, sha256: &str) {
        self.files.remove(sha256).await;
    }
}

fn name_of(address: &str) -> String {
    cctuning::bundle::hex(&Sha256::digest(address.as_bytes()))
}
