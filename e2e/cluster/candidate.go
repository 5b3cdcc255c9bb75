package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// candidate stands for a Lease with client-go's own leader election, and prints a line for each
// change: "leading TIME" and "stopped TIME", Unix nanoseconds. It ends when its standard input does.
func candidate(args []string) int {
	flags := flag.NewFlagSet("candidate", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "how to reach the API server")
	namespace := flags.String("namespace", "default", "of the Lease")
	lease := flags.String("lease", "", "the name of the Lease")
	id := flags.String("id", "go", "who to be")
	duration := flags.Duration("duration", 15*time.Second, "of the lease")
	_ = flags.Parse(args)
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		buffer := make([]byte, 1)
		for {
			if _, err := os.Stdin.Read(buffer); err != nil {
				stop()
				return
			}
		}
	}()
	for ctx.Err() == nil {
		leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Namespace: *namespace, Name: *lease},
				Client:     kubernetes.NewForConfigOrDie(config).CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: *id},
			},
			LeaseDuration:   *duration,
			RenewDeadline:   *duration * 2 / 3,
			RetryPeriod:     *duration / 8,
			ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(context.Context) { fmt.Println("leading", time.Now().UnixNano()) },
				OnStoppedLeading: func() { fmt.Println("stopped", time.Now().UnixNano()) },
			},
		})
	}
	return 0
}
