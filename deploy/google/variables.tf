variable "project" {
  type        = string
  description = "The project's id. One of its own: the rights on subscriptions count for all of a project's."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project: expected a project's id such as my-project-123, not its display name."
  }
}

variable "topic" {
  type        = string
  default     = "ALIEN_NOTIFICATIONS"
  description = "The topic that all VMs share, as TOPIC has it."

  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9._~+%-]{2,254}$", var.topic)) && !startswith(var.topic, "goog")
    error_message = "topic: expected 3 to 255 letters, digits or -_.~+%, a letter first, and not starting with goog."
  }
}

variable "history_seconds" {
  type        = number
  default     = 3600
  description = "How far back catch-up reaches, as HISTORY_SECONDS has it."

  validation {
    condition     = var.history_seconds >= 1 && var.history_seconds <= 82800 && floor(var.history_seconds) == var.history_seconds
    error_message = "history_seconds: expected a whole number from 1 to 82800."
  }
}

variable "regions" {
  type        = list(string)
  default     = []
  description = "Where Google may keep messages, such as [\"europe-west1\", \"europe-west4\"]; empty: wherever they come in."

  validation {
    condition     = alltrue([for region in var.regions : can(regex("^[a-z]+-[a-z]+[0-9]+$", region))])
    error_message = "regions: expected names of Google's regions such as europe-west1."
  }
}

variable "lifecycle_topic" {
  type        = string
  default     = null
  description = "The topic on which connects and disconnects are told, as LIFECYCLE_TOPIC has it; null: none."

  validation {
    condition     = var.lifecycle_topic == null ? true : can(regex("^[A-Za-z][A-Za-z0-9._~+%-]{2,254}$", var.lifecycle_topic)) && var.lifecycle_topic != var.topic
    error_message = "lifecycle_topic: expected another name than topic, 3 to 255 letters, digits or -_.~+%, a letter first."
  }
}

variable "fly" {
  type = object({
    org = string
    app = string
  })
  default     = null
  description = "The organization (its slug: fly orgs list) and the app on Fly whose Machines need no key; null: VMs have a key."

  validation {
    condition     = var.fly == null ? true : can(regex("^[a-z0-9-]+$", var.fly.org)) && can(regex("^[a-z0-9-]+$", var.fly.app))
    error_message = "fly: expected the organization's slug and the app's name, of small letters, digits and -."
  }
}
