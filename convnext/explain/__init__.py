"""What a network looks at: activation maps, feature maps, nearest training images."""
