"""What protoc made of proto/: run generate.sh, do not edit."""
