"""Speed, measured side by side with peers on the same inputs."""
