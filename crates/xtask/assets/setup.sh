#!/bin/sh
# Runs once in every new VM, before it reports that it is ready.
echo "configured by script on $(hostname)"
