//! A further topic, for others than VMs: made where it is missing, and only published to.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use google_cloud_pubsub::client::Publisher;
use google_cloud_pubsub::model;
use tracing::debug;

use super::{PubSub, confirmation, publisher};
use crate::bus::BusError;

/// What comes within this goes together.
const TOGETHER: Duration = Duration::from_millis(20);

/// The attribute that a backend's subscription can filter by.
const EVENT: &str = "event";

pub struct Outlet(Publisher);

impl PubSub {
    pub(in crate::bus) async fn outlet(&self, name: &str) -> Result<Outlet, BusError> {
        let inner = &self.0;
        let folder = inner.topic.rsplit_once('/').map_or("", |(folder, _)| folder);
        let topic = format!("{folder}/{name}");
        if let Err(error) = self.create_topic(&topic, None).await {
            // It may be there, made by somebody who does not let VMs make any.
            debug!(%error, "can't see to it that the topic is there");
        }
        publisher(topic, inner.endpoint.clone(), inner.credentials.clone(), TOGETHER)
            .await
            .map(Outlet)
            .map_err(|error| BusError::new(format!("connecting: {error}")))
    }
}

impl Outlet {
    /// As [`crate::bus::Bus::publish`].
    pub fn publish(
        &self,
        data: Bytes,
        event: &str,
    ) -> impl Future<Output = Result<(), BusError>> + Send + use<> {
        let message = model::Message::new().set_data(data).set_attributes([(EVENT, event)]);
        confirmation(self.0.publish(message))
    }
}
