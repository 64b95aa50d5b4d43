"""What is in the images, started as Kubernetes starts it: `make image-test`, never `make test`."""
