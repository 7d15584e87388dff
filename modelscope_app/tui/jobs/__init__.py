"""Jobs in the app: what the service says, the bar at the bottom, and the screen with logs and memory."""
