//go:build tools

// What the lab builds from this module: the program by which people install charts, as released.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
