module nslookout/lab/programs/prometheus-operator

go 1.24.0

// Its CRDs alone are used: nothing is built of it.
require github.com/prometheus-operator/prometheus-operator v0.85.0
