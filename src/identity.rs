//! Who this VM is, and where: read from what Fly (or App Engine) sets.
//!
//! The id names the VM's subscription, so it must make a legal Pub/Sub name, and is told to
//! every client, which is why it carries nothing secret.

use std::sync::Arc;

use uuid::Uuid;

use crate::bus::pubsub;
use crate::config::{ConfigError, Env};

/// The subscription's filter holds the id and may have 256 bytes in all.
const MAX_ID: usize = 200;

/// One VM's name and place. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    instance: Arc<str>,
    region: Arc<str>,
    on_fly: bool,
}

impl Identity {
    /// # Errors
    /// Where the id can't be part of a subscription's name; the error names its variable.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let sources = [
            ("FLY_ALLOC_ID", &env.fly_alloc_id),
            ("FLY_MACHINE_ID", &env.fly_machine_id),
            ("GAE_INSTANCE", &env.gae_instance),
        ];
        let given = sources.into_iter().find_map(|(name, value)| Some((name, value.as_deref()?)));
        let instance = match given {
            None => Uuid::new_v4().to_string(),
            Some((name, id)) if id.len() > MAX_ID => {
                return Err(ConfigError::value(name, id, format!("at most {MAX_ID} characters")));
            }
            Some((name, id)) => {
                pubsub::check_characters(name, id)?;
                id.to_owned()
            }
        };
        let region = env.fly_region.as_deref().unwrap_or("LOCAL_REGION");
        if region.len() > 32 || !region.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            return Err(ConfigError::value(
                "FLY_REGION",
                region,
                "at most 32 letters, digits, - or _, such as ams",
            ));
        }
        Ok(Self { instance: instance.into(), region: region.into(), on_fly: env.fly_app_name.is_some() })
    }

    /// At the same place, what is no VM: of a name that no VM has, so that what is for it is for nobody else.
    pub fn probe(&self) -> Self {
        let instance = format!("doctor-{}", Uuid::new_v4().simple()).into();
        Self { instance, ..self.clone() }
    }

    /// Whether a VM could be called so.
    pub fn is_instance(id: &str) -> bool {
        (1..=MAX_ID).contains(&id.len()) && pubsub::check_characters("", id).is_ok()
    }

    pub fn instance(&self) -> &Arc<str> {
        &self.instance
    }

    pub fn region(&self) -> &Arc<str> {
        &self.region
    }

    /// Whether Fly's proxy is in front, so that its request headers can be believed.
    pub fn on_fly(&self) -> bool {
        self.on_fly
    }

    /// The name of this VM's own subscription.
    pub fn subscription(&self) -> String {
        format!("ID_{}", self.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(alloc: &str) -> Result<Identity, ConfigError> {
        Identity::from_env(&Env { fly_alloc_id: Some(alloc.into()), ..Env::default() })
    }

    #[test]
    fn both_forms_of_fly_ids_make_a_subscription() {
        for id in ["148ed123c79d89", "67a0fec8-3e4a-5f2b-9d1c-0a1b2c3d4e5f"] {
            assert_eq!(identity(id).unwrap().subscription(), format!("ID_{id}"));
        }
    }

    #[test]
    fn an_illegal_name_is_refused() {
        for id in ["a b", "a/b", "ä", &"x".repeat(201)] {
            assert!(identity(id).unwrap_err().to_string().starts_with("FLY_ALLOC_ID="), "{id}");
        }
    }

    #[test]
    fn falls_back_in_order() {
        let env = Env {
            fly_machine_id: Some("machine".into()),
            gae_instance: Some("gae".into()),
            ..Env::default()
        };
        assert_eq!(&**Identity::from_env(&env).unwrap().instance(), "machine");
        let fresh = Identity::from_env(&Env::default()).unwrap();
        assert!(Uuid::parse_str(fresh.instance()).is_ok());
    }
}
