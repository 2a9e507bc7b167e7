#!/bin/bash
# Kinds as Calico stores them, in crd.projectcalico.org/v1, without schemas: what 'kubectl apply -f -' takes.
while read -r scope kind plural subresources; do
	cat <<-Y
		---
		apiVersion: apiextensions.k8s.io/v1
		kind: CustomResourceDefinition
		metadata: {name: $plural.crd.projectcalico.org}
		spec:
		  group: crd.projectcalico.org
		  scope: $scope
		  names: {kind: $kind, listKind: ${kind}List, plural: $plural, singular: ${kind,,}}
		  versions: [{name: v1, served: true, storage: true, ${subresources:+subresources: {status: {\}\}, }schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
	Y
done <<-L
	Cluster BGPConfiguration bgpconfigurations
	Cluster BlockAffinity blockaffinities
	Cluster ClusterInformation clusterinformations
	Cluster FelixConfiguration felixconfigurations
	Cluster GlobalNetworkPolicy globalnetworkpolicies
	Cluster GlobalNetworkSet globalnetworksets
	Cluster HostEndpoint hostendpoints
	Cluster IPAMBlock ipamblocks
	Cluster IPAMConfig ipamconfigs
	Cluster IPAMHandle ipamhandles
	Cluster IPPool ippools
	Cluster IPReservation ipreservations
	Cluster KubeControllersConfiguration kubecontrollersconfigurations status
	Cluster StagedGlobalNetworkPolicy stagedglobalnetworkpolicies
	Cluster Tier tiers
	Namespaced NetworkPolicy networkpolicies
	Namespaced NetworkSet networksets
	Namespaced StagedNetworkPolicy stagednetworkpolicies
L
