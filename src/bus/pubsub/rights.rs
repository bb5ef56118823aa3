//! What VMs, and the doctor, ask of Pub/Sub, and the right that each call needs.
//!
//! This list is the one that counts: tests hold the calls in this folder to it, and it to the roles in
//! `deploy/google` and `docs/deploy.md`. Which right a call needs is told by Google's page on Pub/Sub's
//! access control.

/// A permission of Google's IAM.
#[derive(Debug)]
pub struct Right {
    pub name: &'static str,
    pub on: Scope,
    /// The calls that need it, by their names in Google's client.
    pub calls: &'static [&'static str],
    /// Only where VMs are to make or mend the topic themselves.
    pub is_extra: bool,
}

/// The narrowest resource on which it can be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Topic,
    /// A subscription is made in a project, and each VM makes its own: there is none to grant a right on
    /// beforehand, and Pub/Sub knows no conditions by name.
    Project,
}

pub const CREATE_TOPIC: Right = extra("pubsub.topics.create", Scope::Project, &["create_topic"]);
pub const UPDATE_TOPIC: Right = extra("pubsub.topics.update", Scope::Topic, &["update_topic"]);
pub const GET_TOPIC: Right =
    right("pubsub.topics.get", Scope::Topic, &["get_topic", "list_topic_subscriptions"]);
pub const PUBLISH: Right = right("pubsub.topics.publish", Scope::Topic, &["publish"]);
pub const ATTACH: Right = right("pubsub.topics.attachSubscription", Scope::Topic, &["create_subscription"]);
pub const CREATE: Right = right("pubsub.subscriptions.create", Scope::Project, &["create_subscription"]);
pub const GET: Right = right("pubsub.subscriptions.get", Scope::Project, &["get_subscription"]);
pub const CONSUME: Right = right("pubsub.subscriptions.consume", Scope::Project, &["subscribe", "seek"]);
pub const DELETE: Right = right("pubsub.subscriptions.delete", Scope::Project, &["delete_subscription"]);

pub const ALL: [Right; 9] =
    [CREATE_TOPIC, UPDATE_TOPIC, GET_TOPIC, PUBLISH, ATTACH, CREATE, GET, CONSUME, DELETE];

const fn right(name: &'static str, on: Scope, calls: &'static [&'static str]) -> Right {
    Right { name, on, calls, is_extra: false }
}

const fn extra(name: &'static str, on: Scope, calls: &'static [&'static str]) -> Right {
    Right { name, on, calls, is_extra: true }
}

impl Right {
    /// In words for who grants it.
    pub fn on_what(&self) -> String {
        let on = match self.on {
            Scope::Topic => "topic",
            Scope::Project => "project",
        };
        format!("{} on the {on}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each method of Google's clients that makes a call; of the calls within a stream, `subscribe` alone.
    const METHODS: [&str; 20] = [
        "create_topic",
        "update_topic",
        "get_topic",
        "list_topics",
        "list_topic_subscriptions",
        "list_topic_snapshots",
        "delete_topic",
        "detach_subscription",
        "create_subscription",
        "get_subscription",
        "update_subscription",
        "list_subscriptions",
        "delete_subscription",
        "modify_push_config",
        "create_snapshot",
        "update_snapshot",
        "delete_snapshot",
        "seek",
        "publish",
        "subscribe",
    ];

    #[test]
    fn each_call_that_is_made_has_its_right_and_no_right_is_without_a_call() {
        let sources = [include_str!("admin.rs"), include_str!("mod.rs"), include_str!("probe.rs")].concat()
            + include_str!("outlet.rs");
        let is_made = |method: &&&str| sources.contains(&format!(".{method}("));
        let made: BTreeSet<_> = METHODS.iter().filter(is_made).copied().collect();
        let known: BTreeSet<_> = ALL.iter().flat_map(|right| right.calls).copied().collect();
        assert_eq!(made, known);
    }
}
