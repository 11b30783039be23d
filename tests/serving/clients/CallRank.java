// Call a server with java.net.http as it comes: it wishes for HTTP/2 with each request, and keeps connections.
//
// Run by test_clients.py: java CallRank.java PORT PATH BODY COUNT. Prints the answers, one a line.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.concurrent.CompletableFuture;

public class CallRank {
  public static void main(String[] words) throws Exception {
    URI uri = URI.create("http://127.0.0.1:" + words[0] + words[1]);
    HttpClient client = HttpClient.newHttpClient();
    HttpRequest request =
        HttpRequest.newBuilder(uri)
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(words[2]))
            .build();
    int count = Integer.parseInt(words[3]);
    for (int i = 0; i < count; ++i) {
      print(client.send(request, HttpResponse.BodyHandlers.ofString()));
    }
    var waiting = new ArrayList<CompletableFuture<HttpResponse<String>>>();
    for (int i = 0; i < count; ++i) {
      waiting.add(client.sendAsync(request, HttpResponse.BodyHandlers.ofString()));
    }
    for (var answer : waiting) {
      print(answer.get());
    }
  }

  private static void print(HttpResponse<String> answer) {
    if (answer.statusCode() != 200) {
      throw new IllegalStateException(answer.statusCode() + " " + answer.body());
    }
    System.out.println(answer.body().replace("\n", ""));
  }
}
