#!/bin/sh
echo "$LAB_PASSWORD"
