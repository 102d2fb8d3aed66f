//go:build tools

// What the lab builds from this module: the next program by which people install charts, as released.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
