//! A real Chromium, driven through its own driver.
