//! Copies of backups in an object store: a directory, or whatever speaks S3.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::runtime::{Builder, Runtime};

use super::manager::Remote;

/// How long one copy may take: a save waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// An object store. A copy is made by the thread that saves.
pub struct ObjectRemote {
    store: Arc<dyn ObjectStore>,
    runtime: Runtime,
}

impl ObjectRemote {
    /// Another directory, perhaps on another disk, which is made if it is missing.
    pub fn directory(path: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(|error| error.to_string())?;
        Self::new(Arc::new(store.with_fsync(true)))
    }

    /// A bucket of a service that speaks S3. Without a key, which is its id and its secret, they come from
    /// the environment (`AWS_ACCESS_KEY_ID`, ...).
    pub fn bucket(endpoint: &str, bucket: &str, key: Option<(&str, &str)>) -> Result<Self, String> {
        let mut builder = AmazonS3Builder::from_env();
        if let Some((id, secret)) = key {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        }
        let builder = builder
            .with_endpoint(endpoint)
            .with_bucket_name(bucket)
            .with_allow_http(endpoint.starts_with("http://"))
            // What fails is tried again with the next backup.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
        Self::new(Arc::new(builder.build().map_err(|error| error.to_string())?))
    }

    fn new(store: Arc<dyn ObjectStore>) -> Result<Self, String> {
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(Self { store, runtime: runtime.map_err(|error| error.to_string())? })
    }
}

impl Remote for ObjectRemote {
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let key = Key::from(name);
        let put = self.store.put(&key, bytes.to_vec().into());
        let put = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, put).await });
        match put {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} seconds", PATIENCE.as_secs())),
        }
    }
}
