# What the VMs of Alien Alert need of Google: a topic, an account, and the rights to what they do.

resource "google_project_service" "pubsub" {
  project            = var.project
  service            = "pubsub.googleapis.com"
  disable_on_destroy = false
}

resource "google_pubsub_topic" "events" {
  project = var.project
  name    = var.topic
  labels  = { app = "alien-alert" }

  # A VM that joins hears what was before it. A little more than the window, whose edge moves on meanwhile;
  # ten minutes is Pub/Sub's shortest.
  message_retention_duration = "${max(600, var.history_seconds + 300)}s"

  dynamic "message_storage_policy" {
    for_each = length(var.regions) == 0 ? [] : [var.regions]
    content {
      allowed_persistence_regions = message_storage_policy.value
    }
  }

  depends_on = [google_project_service.pubsub]
}

resource "google_pubsub_topic" "lifecycle" {
  count = var.lifecycle_topic == null ? 0 : 1

  project = var.project
  name    = var.lifecycle_topic
  labels  = { app = "alien-alert" }

  dynamic "message_storage_policy" {
    for_each = length(var.regions) == 0 ? [] : [var.regions]
    content {
      allowed_persistence_regions = message_storage_policy.value
    }
  }

  depends_on = [google_project_service.pubsub]
}

resource "google_service_account" "vm" {
  project      = var.project
  account_id   = "alien-alert"
  display_name = "The VMs of Alien Alert"
}

# What is granted on the topic alone. VMs neither make nor change it: topics.create and topics.update are
# not among these.
resource "google_project_iam_custom_role" "topic" {
  project     = var.project
  role_id     = "alienAlertTopic"
  title       = "Alien Alert: the topic"
  description = "Publish on the topic, subscribe to it, and see how long it keeps messages."

  permissions = [
    "pubsub.topics.get",                # topics.get: whether it keeps messages long enough; topics.subscriptions.list: the doctor's left-overs
    "pubsub.topics.publish",            # topics.publish: events and beacons
    "pubsub.topics.attachSubscription", # subscriptions.create: the VM's own, on this topic
  ]
}

# What can only be granted on the project: each VM makes a subscription of its own, so there is none before
# to grant a right on, and Pub/Sub knows no conditions by name.
resource "google_project_iam_custom_role" "subscriptions" {
  project     = var.project
  role_id     = "alienAlertSubscriptions"
  title       = "Alien Alert: the VMs' subscriptions"
  description = "Make a subscription, read it, wind it back and delete it."

  permissions = [
    "pubsub.subscriptions.create",  # subscriptions.create: at a VM's start
    "pubsub.subscriptions.get",     # subscriptions.get: whether the one of before is its own and alive
    "pubsub.subscriptions.consume", # StreamingPull, acknowledge and modifyAckDeadline: to receive; subscriptions.seek: to catch up
    "pubsub.subscriptions.delete",  # subscriptions.delete: at a VM's end
  ]
}

resource "google_pubsub_topic_iam_member" "vm" {
  project = var.project
  topic   = google_pubsub_topic.events.name
  role    = google_project_iam_custom_role.topic.id
  member  = google_service_account.vm.member
}

resource "google_pubsub_topic_iam_member" "vm_lifecycle" {
  count = var.lifecycle_topic == null ? 0 : 1

  project = var.project
  topic   = google_pubsub_topic.lifecycle[0].name
  # Nothing but topics.publish.
  role   = "roles/pubsub.publisher"
  member = google_service_account.vm.member
}

resource "google_project_iam_member" "vm" {
  project = var.project
  role    = google_project_iam_custom_role.subscriptions.id
  member  = google_service_account.vm.member
}
