output "topic" {
  description = "The topic's full name."
  value       = google_pubsub_topic.events.id
}

output "service_account" {
  description = "Whom a key is made for, where VMs have one."
  value       = google_service_account.vm.email
}

output "environment" {
  description = "What the VMs are to be set up with, none of it secret. Without fly a key is needed besides."
  value = merge(
    {
      GOOGLE_CLOUD_PROJECT = var.project
      TOPIC                = google_pubsub_topic.events.name
      HISTORY_SECONDS      = tostring(var.history_seconds)
    },
    { for name in google_pubsub_topic.lifecycle[*].name : "LIFECYCLE_TOPIC" => name },
    { for name in google_iam_workload_identity_pool_provider.fly[*].name : "GOOGLE_WORKLOAD_IDENTITY_PROVIDER" => "//iam.googleapis.com/${name}" },
    { for name in google_iam_workload_identity_pool_provider.fly[*].name : "GOOGLE_SERVICE_ACCOUNT" => google_service_account.vm.email },
  )
}
