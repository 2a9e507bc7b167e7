"""What an operator installs: service, image, manifests, dashboard, alerts, access rules."""
