# No key: Google believes what Fly says of its Machines (Workload Identity Federation). Only with fly set.

locals {
  keyless = var.fly == null ? 0 : 1
  # To exchange Fly's token for one of Google's, and that for one of the service account.
  exchange = var.fly == null ? [] : ["iam.googleapis.com", "sts.googleapis.com", "iamcredentials.googleapis.com"]
}

resource "google_project_service" "exchange" {
  for_each = toset(local.exchange)

  project            = var.project
  service            = each.value
  disable_on_destroy = false
}

resource "google_iam_workload_identity_pool" "fly" {
  count = local.keyless

  project                   = var.project
  workload_identity_pool_id = "fly-machines"
  display_name              = "Machines on Fly"

  depends_on = [google_project_service.exchange]
}

resource "google_iam_workload_identity_pool_provider" "fly" {
  count = local.keyless

  project                            = var.project
  workload_identity_pool_id          = google_iam_workload_identity_pool.fly[0].workload_identity_pool_id
  workload_identity_pool_provider_id = "fly-io"
  display_name                       = "Fly"

  # The token's subject is ORGANIZATION:APP:MACHINE.
  attribute_mapping = {
    "google.subject" = "assertion.sub"
    "attribute.app"  = "assertion.app_name"
  }

  # Fly signs for every app of the organization; this one alone is let in.
  attribute_condition = "assertion.app_name == '${var.fly.app}'"

  # With no audiences named, a token must be for this provider by its full name, and for nobody else.
  oidc {
    issuer_uri = "https://oidc.fly.io/${var.fly.org}"
  }
}

resource "google_service_account_iam_member" "fly" {
  count = local.keyless

  service_account_id = google_service_account.vm.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.fly[0].name}/attribute.app/${var.fly.app}"
}
